"""What adds columns to rows, or makes other rows of them: a model or a user's functions.

The driver plans with a `PlannedProcessor`; what is sent to the workers is a `ProcessorSpec`, which
they open as a `Processor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import pyarrow as pa

from sparkinfer.metrics.base import Evaluation, LabelNames
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Activity

Report = Callable[[ScoringStatistics], None]
"""Receives what a processor has done so far."""


class Processor(Protocol):
    """Adds columns to rows, in a worker process.

    Attributes:
        statistics: what it has done so far.
    """

    statistics: ScoringStatistics

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields the added columns of every row, in the order of the rows.

        The output batches have as many rows in total as the input batches, unless the spec
        `replaces_rows`, but may be cut differently. A row that cannot be processed has nulls and a
        reason in `error`.
        """

    def activities(self) -> Sequence[Activity | None]:
        """Returns what each of its threads is doing, for the watchdog; None for one that waits."""


class ProcessorSpec(Protocol):
    """What a processor is made of; small and picklable, since it is sent with every task.

    Attributes:
        inputs: columns that it reads, in its order.
        fields: columns that it adds, with their prefix. `n_tokens`, `truncated` and `error` come
            last.
        prefix: of the name of each added column.
        replaces_rows: whether what it yields are the rows of the output, however many they are, in
            place of columns beside those of the input.
    """

    @property
    def inputs(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def fields(self) -> pa.Schema: ...  # noqa: D102
    @property
    def prefix(self) -> str: ...  # noqa: D102
    @property
    def replaces_rows(self) -> bool: ...  # noqa: D102

    def open(self, slot: WorkerSlot, report: Report) -> Processor:
        """Returns the processor, ready in this process."""


S = TypeVar("S", bound="PlannedProcessor")


class PlannedProcessor(ProcessorSpec, Protocol):
    """A spec as the driver plans with it.

    Attributes:
        labels: names of what it may predict, in the order of their ids, of several models by the
            model's name; empty if there are none.
        evaluation: how its results are measured; None: they are not.
        verdict: what a trial found, for people and for the manifest; None before one.
    """

    @property
    def labels(self) -> LabelNames: ...  # noqa: D102
    @property
    def evaluation(self) -> Evaluation | None: ...  # noqa: D102
    @property
    def verdict(self) -> Any: ...  # noqa: D102

    def check(self) -> None:
        """Raises UsageError for mistakes that show without a worker."""

    def check_names(self, columns: Sequence[str]) -> None:
        """Raises InputError if the input has not all columns that it reads.

        Args:
            columns: names of the input's columns.
        """

    def check_types(self, inputs: pa.Schema) -> None:
        """Raises InputError if a column that it reads has a type that it cannot read.

        Args:
            inputs: the columns that it reads.
        """

    def longest_text(self, of_column: Callable[[str], int | None]) -> int | None:
        """Returns an upper bound of the UTF-8 bytes of the longest text, None if unknown.

        Args:
            of_column: returns the same for the values of a column.
        """

    def resolved(self: S) -> S:
        """Returns the spec pinned to the exact files that every worker must use."""

    def settings(self) -> Mapping[str, Any]:
        """Returns the settings that determine the output, by name, as JSON values."""

    def pinned(self: S, verdict: Mapping[str, Any]) -> S:
        """Returns the spec, to be tried out only in the way that an earlier trial decided for.

        What the user asked for explicitly stays.

        Args:
            verdict: as a manifest keeps it.

        Raises:
            EngineUnavailableError: that way needs what is not installed.
        """

    def warm_up(self) -> None:
        """Imports what it needs, in a worker that will open it soon."""

    def try_out(self, slot: WorkerSlot, ahead: RowsAhead = NOTHING_KNOWN) -> Any:
        """Returns what one worker finds out before the job; picklable.

        Args:
            slot: what that worker has been given.
            ahead: what is known of the job.
        """

    def decided(self: S, found: Any) -> S:
        """Returns the spec as every worker opens it, given what `try_out` returned."""


@runtime_checkable
class AvoidsSuspects(Protocol):
    """A processor that notes what it is about to run and runs suspects alone.

    Attributes:
        suspects: of the rows that come next.
    """

    suspects: Suspects


class RowsOfInput(Protocol):
    """Rows for a worker that looks at them before the run; picklable."""

    def __call__(self) -> Iterable[pa.RecordBatch]:
        """Yields rows from the input's start, with all columns that any processor reads."""


@runtime_checkable
class LooksAtRows(Protocol):
    """A planned processor whose trial looks at rows of the input."""

    def looking_at(self, first_rows: Callable[[], RowsOfInput]) -> Any:
        """Returns the spec, to be tried out on rows of the input.

        Args:
            first_rows: returns them; to be called on the driver, and only if they are wanted: for
                a table it takes a job.
        """


@runtime_checkable
class SharesHosts(Protocol):
    """A planned processor of which only so many may be at work on one host."""

    def on_hosts(self, application: str, cores: Mapping[str, int]) -> Any:
        """Returns the spec for the hosts of an application.

        Args:
            application: its name, the same in all its workers.
            cores: that it has on each host.
        """


@runtime_checkable
class EncodesAhead(ProcessorSpec, Protocol):
    """A spec whose work on the CPU may be done before, elsewhere.

    What it opens to has `process_encoded`, which takes an `EncodedWindow` in place of rows.

    Attributes:
        encodings: how often rows are encoded, once for each tokenizer.
        read_beside: columns that it reads besides.
    """

    @property
    def encodings(self) -> int: ...  # noqa: D102
    @property
    def read_beside(self) -> tuple[str, ...]: ...  # noqa: D102

    def encoder(self, cores: int) -> Callable[[pa.RecordBatch, Suspects], tuple[Any, ...]]:
        """Returns what encodes rows in this process, loaded.

        It returns `EncodedRows`, one for each of `encodings`; for its second argument see
        `AvoidsSuspects`.

        Args:
            cores: for it.
        """


def encodes_ahead(spec: ProcessorSpec) -> TypeGuard[EncodesAhead]:
    """Returns whether there is something of a spec's work that may be done before."""
    return isinstance(spec, EncodesAhead) and spec.encodings > 0
