"""The seam between a run and what moves its rows.

A run asks an engine three things, in this order: is the input there and as described, how should
the model be run, and score these chunks. The files of a chunk are written into a staging folder of
its own, where readers do not see them; publishing is the run's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sparkinfer.models.acceleration import Verdict
from sparkinfer.models.sources import ModelSource
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.copying import FileCopier
from sparkinfer.rows.reading import InputFolders


@dataclass(frozen=True)
class InputTable:
    """What is known of the input before the job.

    Attributes:
        columns: names, in order.
        kind: `parquet`, `csv`, `json` or `table`.
        path: where its files are, None for a table.
        carried: types of the columns that the output keeps, by name; see `type_name`.
    """

    columns: tuple[str, ...]
    kind: str
    path: str | None
    carried: Mapping[str, str]


@dataclass(frozen=True)
class Workers:
    """How many model replicas score at once, and on what.

    Attributes:
        kind: `cpu` or `cuda`.
        count: replicas.
    """

    kind: str
    count: int


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
        files: names of the Parquet files below it.
        seconds: from the chunk's start to its files being whole.
    """

    chunk: Chunk
    staging: str
    files: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class ScoringRun:
    """What an engine is asked to score.

    Attributes:
        source: the model's files.
        verdict: how the model is run.
        read_from: folders that the chunks' files lie in.
        tasks: the chunks, in the order in which they should be begun.
        staging: folder for what the engine itself has to keep meanwhile.
        commit: takes a scored chunk, from one thread at a time; what it raises ends the run.
        note_deaths: takes the number of a chunk and how often a worker died while it scored it.
    """

    source: ModelSource
    verdict: Verdict
    read_from: InputFolders
    tasks: tuple[ChunkTask, ...]
    staging: str
    commit: Callable[[ScoredChunk], None]
    note_deaths: Callable[[int, int], None]


class Engine(Protocol):
    """Moves rows from an input through scorers to Parquet files."""

    def open_input(self) -> InputTable:
        """Returns what the input holds.

        Raises:
            InputError: it is missing, unreadable or lacks a column.
        """

    def stage_input(self, folder: str, rows_per_file: int, paths: Sequence[str]) -> None:
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

    def find_workers(self) -> Workers:
        """Returns the replicas that the run will use.

        Raises:
            EngineUnavailableError: an accelerator was asked for and is not there.
        """

    def run_gate(self, source: ModelSource) -> Verdict:
        """Returns how every worker is to run the model, tried in one worker."""

    def score(self, run: ScoringRun, progress: Progress) -> None:
        """Scores the chunks, several at once, and commits each when its files are written.

        Raises:
            JobError: a worker failed for good.
        """
