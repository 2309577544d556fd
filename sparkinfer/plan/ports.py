"""The ports between a run and what moves its rows.

A run opens an input, asks an engine on what it scores, has one worker try the processor out, and
then has the engine score chunks. The files of a chunk are written into a staging folder of its own,
where readers do not see them; publishing is the run's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import pyarrow as pa

from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.copying import FileCopier
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.workers.slot import WorkerSlot

T = TypeVar("T")


@dataclass(frozen=True)
class InputTable:
    """What is known of the input before the job.

    Attributes:
        columns: names, in order.
        input_format: `parquet`, `csv`, `json`, `table` or `DataFrame`.
        path: where its files are; None for a table or a DataFrame.
        schema: the columns that Arrow has a type for.
        foreign: the type of each other column, by its name.
    """

    columns: tuple[str, ...]
    input_format: str
    path: str | None
    schema: pa.Schema
    foreign: Mapping[str, str] = field(default_factory=dict)


class InputSource(Protocol):
    """Where the rows come from."""

    def open(self) -> InputTable:
        """Returns what the input holds.

        Raises:
            InputError: it is missing or unreadable.
        """

    def copy(self, folder: str, rows_per_file: int, paths: Sequence[str]) -> None:
        """Copies an input that is not Parquet to a folder of Parquet files.

        Args:
            folder: receives them.
            rows_per_file: most rows of a file.
            paths: those of the input's files that are copied; none for a table.

        Raises:
            JobError: it could not be read or written.
        """

    def copy_files(self, copier: FileCopier, names: Sequence[str]) -> Mapping[str, list[str]]:
        """Copies Parquet files, several at once, and returns the names of the copies of each.

        Raises:
            JobError: a file could not be read or a copy not written.
        """


@dataclass(frozen=True)
class ChunkTask:
    """A chunk that is to be scored.

    Attributes:
        chunk: where its rows are.
        staging: receives its files; no reader looks there. The engine makes the folder.
        deaths: how often a worker died while it scored this chunk, as far as is known.
    """

    chunk: Chunk
    staging: str
    deaths: int = 0


@dataclass(frozen=True)
class ScoredChunk:
    """A chunk whose files lie in its staging folder, whole.

    Attributes:
        chunk: see `ChunkTask`.
        staging: see `ChunkTask`.
        files: its Parquet files, as those who wrote them tell.
        seconds: from the chunk's start to its files being whole.
    """

    chunk: Chunk
    staging: str
    files: tuple[WrittenFile, ...]
    seconds: float


class ChunkLedger(Protocol):
    """Takes what becomes of chunks; from several threads at once."""

    def commit(self, scored: ScoredChunk) -> None:
        """Makes a chunk part of the output; what it raises ends the run."""

    def note_deaths(self, number: int, deaths: int) -> None:
        """Takes the number of a chunk and how often a worker died while it scored it."""


class Engine(Protocol):
    """Moves rows from an input through processors to Parquet files."""

    def workers(self) -> Workers:
        """Returns the replicas that the run will use.

        Raises:
            EngineUnavailableError: an accelerator was asked for and is not there.
        """

    def on_one_worker(self, act: Callable[[WorkerSlot], T], warm_up: Callable[[], None]) -> T:
        """Returns what a function returns in one of the workers.

        Args:
            act: picklable, as is what it returns.
            warm_up: called in the other workers meanwhile, where they are likely to score later.

        Raises:
            SparkInferError: what it raised.
            JobError: the worker failed.
        """

    def score(
        self, plan: Plan, tasks: Iterable[ChunkTask], ledger: ChunkLedger, progress: Progress
    ) -> None:
        """Scores chunks, several at once, and commits each when its files are written.

        Args:
            plan: how.
            tasks: the chunks, in the order in which they should be begun; taken as they are needed
                where the engine can.
            ledger: takes what becomes of them.
            progress: is told of phases and of what workers do.

        Raises:
            JobError: a worker failed for good.
        """

    def close(self) -> None:
        """Lets go of what the engine keeps in this process."""
