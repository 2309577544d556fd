"""The ports between a run and what moves its rows.

A run opens an input, asks an engine what it scores on, has one worker try out the processor, and
then has the engine score chunks. Each chunk's files are written to its own staging folder, where
readers do not see them; publishing them is up to the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import pyarrow as pa

from sparkinfer.files.listing import FoundFiles, InputFile
from sparkinfer.files.parquet import TextSizes
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.progress import Progress
from sparkinfer.plan.table_state import Mark, TableState
from sparkinfer.rows.copying import FileRows
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.workers.slot import WorkerSlot

T = TypeVar("T")


class FileAccess(Protocol):
    """An input of files."""

    @property
    def found(self) -> FoundFiles:
        """The files when the input was opened."""

    @property
    def rows(self) -> FileRows:
        """Reads the rows of one of them."""

    @property
    def nanoseconds(self) -> tuple[str, ...]:
        """Columns with timestamps that are finer than the run's in some file."""

    def now(self) -> tuple[InputFile, ...]:
        """Returns the files as they are now."""

    def text_sizes(self, column: str) -> TextSizes:
        """Returns how much text a column has."""

    def on_each(self, act: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Calls a function with each name of a file, several in parallel, and returns the results.

        Args:
            act: picklable, as are its results; it may run more than once for a name.
            names: of the input's files.

        Raises:
            SparkInferError: raised by the function.
            JobError: a task failed.
        """


class TableAccess(Protocol):
    """An input that only Spark can read: a table, a view, a query, a DataFrame."""

    def first_rows(self, columns: pa.Schema, rows: int) -> pa.RecordBatch:
        """Returns at most so many rows, whichever come first.

        Raises:
            JobError: the input could not be read.
        """

    def copy(
        self, folder: str, rows_per_file: int, columns: Sequence[str], beyond: Mark | None
    ) -> None:
        """Copies rows to a folder of Parquet files.

        Args:
            folder: where to write them.
            rows_per_file: maximum rows of a file.
            columns: to copy.
            beyond: only rows beyond this mark; None: all.

        Raises:
            JobError: the input could not be read or the copy not written.
        """

    def state(self, columns: Sequence[str], until: Mark | None) -> TableState:
        """Returns what the input is now, in one scan unless it has a version.

        Args:
            columns: that count.
            until: only rows that are not beyond this mark; None: all, with the version.
        """

    def state_of_copy(self, paths: Sequence[str], columns: Sequence[str]) -> TableState:
        """Returns the same for copied files."""

    def on_each(self, act: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Calls a function with each name in Spark tasks; see `FileAccess.on_each`."""

    def version(self) -> str | None:
        """Returns the table's version, None if it keeps none."""

    def mark(self, paths: Sequence[str], column: str) -> Mark | None:
        """Returns the mark of copied files: the largest value of a column, None without any."""


@dataclass(frozen=True)
class InputTable:
    """What is known of the input before the job.

    Attributes:
        columns: names, in order.
        input_format: `parquet`, `csv`, `json`, `table`, `query` or `DataFrame`.
        schema: the columns that can be read, with the types that they have in the run.
        refused: why each other column cannot, as a phrase that follows its name.
        files: where the rows are; None for what Spark reads.
        table: what Spark reads; None for files.
        notes: what the user should know of it.
    """

    columns: tuple[str, ...]
    input_format: str
    schema: pa.Schema
    refused: Mapping[str, str] = field(default_factory=dict)
    files: FileAccess | None = None
    table: TableAccess | None = None
    notes: tuple[str, ...] = ()


class InputSource(Protocol):
    """Where the rows come from."""

    def open(self) -> InputTable:
        """Returns what the input holds.

        Raises:
            InputError: it is missing or unreadable.
        """


@dataclass(frozen=True)
class ChunkTask:
    """A chunk to score.

    Attributes:
        chunk: where its rows are.
        staging: folder for its files; no reader looks there. The engine creates it.
    """

    chunk: Chunk
    staging: str


@dataclass(frozen=True)
class ScoredChunk:
    """A chunk whose files are complete in its staging folder.

    Attributes:
        chunk: see `ChunkTask`.
        staging: see `ChunkTask`.
        files: its Parquet files, as reported by those that wrote them.
        seconds: from the chunk's start until its files are complete.
    """

    chunk: Chunk
    staging: str
    files: tuple[WrittenFile, ...]
    seconds: float


class ChunkLedger(Protocol):
    """Records what becomes of chunks; may be called from several threads at the same time."""

    def commit(self, scored: ScoredChunk) -> None:
        """Makes a chunk part of the output; an exception raised here ends the run."""


PublicationState = Literal["published", "staged", "missing"]


@dataclass(frozen=True)
class Publication:
    """What readers are to see of a chunk; a record of it is written before anything moves.

    Attributes:
        files: names for readers, with their sizes in bytes.
        sources: where each is staged, as a path below the output's work folder. One without a
            source was published before it was recorded.
        digests: of each, which tell it from others of its size; none if an older version made it.
        rows: of all of them.
        generation: how often the chunk was recorded before.
    """

    files: Mapping[str, int]
    sources: Mapping[str, str]
    digests: Mapping[str, str]
    rows: int
    generation: int = 0


@dataclass(frozen=True)
class Seen:
    """What an output held when it was looked at.

    Attributes:
        files: names and sizes in bytes of what readers see.
        staging: names of the epochs whose staged files are there, as far as they are not published.
    """

    files: Mapping[str, int]
    staging: Collection[str]


class Sink(Protocol):
    """Where readers find what was scored; what changes it may be repeated after a crash."""

    def prepare(self, chunk: Chunk, staging: str, names: Sequence[str]) -> Publication:
        """Returns what readers are to see of a chunk's staged files, which are made durable.

        Raises:
            OSError: a file is missing, or gone by now.
            JobError: a file is not whole.
        """

    def look(self) -> Seen:
        """Returns what the output holds now."""

    def state(self, publication: Publication, seen: Seen) -> PublicationState:
        """Returns whether readers see all of a publication, or can be made to, or not.

        It is staged as long as any part still waits, whatever has that part's name by then: it may
        be of an earlier generation, of the same size.

        Args:
            publication: of a record.
            seen: what `look` returned.
        """

    def is_true(self, publication: Publication) -> bool:
        """Returns whether what is published is what was made, by more than its size."""

    def publish(self, publication: Publication, instead_of: Collection[str]) -> None:
        """Makes what is staged what readers see; what was done before is left as it is.

        Args:
            publication: of a record.
            instead_of: names of what readers see of the same rows until then.

        Raises:
            OSError: a file is missing, or gone by now, or cannot be moved.
        """

    def chunk_of(self, name: str) -> int | None:
        """Returns the number of the chunk that something of this run is of, None for the rest."""

    def remove(self, names: Iterable[str]) -> None:
        """Removes some of what readers see."""

    def is_finished(self) -> bool:
        """Returns whether readers can tell that all is there."""

    def finish(self) -> None:
        """Marks the output as complete."""

    def unfinish(self) -> None:
        """Removes the mark: there is more to do."""


class TableTarget(Protocol):
    """Tables to which a finished output can be written."""

    def columns(self, name: str) -> Mapping[str, str] | None:
        """Returns the types of a table's columns by name, None if there is no such table.

        Raises:
            OutputError: it cannot be looked at.
        """

    def types_of(self, columns: pa.Schema) -> Mapping[str, str]:
        """Returns the types that these columns would have in a table."""

    def count(self, name: str) -> int:
        """Returns the rows of a table, 0 if there is none.

        Raises:
            JobError: they cannot be counted.
        """

    def write(
        self,
        name: str,
        paths: Sequence[str],
        columns: pa.Schema,
        mode: Literal["append", "overwrite"],
    ) -> None:
        """Writes Parquet files to a table, which is made if it is not there.

        Args:
            name: of the table.
            paths: of the files.
            columns: of the files.
            mode: whether its rows stay.

        Raises:
            JobError: it could not be written.
        """


class Engine(Protocol):
    """Moves rows from an input through processors to Parquet files."""

    def workers(self) -> Workers:
        """Returns the replicas that the run will use.

        Raises:
            EngineUnavailableError: an accelerator was requested and there is none.
        """

    def on_one_worker(self, act: Callable[[WorkerSlot], T], warm_up: Callable[[], None]) -> T:
        """Calls a function in one of the workers and returns its result.

        Args:
            act: picklable, as is its result.
            warm_up: called meanwhile in other workers that are likely to score later.

        Raises:
            SparkInferError: raised by the function.
            JobError: the worker failed.
        """

    def score(
        self, plan: Plan, tasks: Iterable[ChunkTask], ledger: ChunkLedger, progress: Progress
    ) -> None:
        """Scores chunks, several in parallel, and commits each once its files are written.

        Args:
            plan: how to score them.
            tasks: the chunks, in the order in which to start them; consumed as needed where the
                engine can.
            ledger: records what becomes of them.
            progress: receives phases and what workers report.

        Raises:
            JobError: a worker failed for good.
        """

    def close(self) -> None:
        """Releases what the engine holds in this process."""
