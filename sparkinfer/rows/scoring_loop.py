"""A worker's loop, whatever engine started it: scores rows, watched for hangs, and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa

from sparkinfer.exceptions import JobError, RowConservationError
from sparkinfer.rows.processor import AvoidsSuspects, Processor, ProcessorSpec
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.workers.machine import machine
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.steps import watched_from_beside
from sparkinfer.workers.suspects import Attempt, Suspects
from sparkinfer.workers.watchdog import StallReport, Watchdog, stacks


class Reporter(Protocol):
    """Where a worker reports what it did; `ProgressClient` is one."""

    def runs_on(self, host: Mapping[str, Any]) -> None:
        """Takes what the host is; see `machine`."""

    def send(self, statistics: ScoringStatistics) -> None:
        """Takes the statistics so far."""

    def finish(self, statistics: ScoringStatistics) -> None:
        """Takes the final statistics of a worker that succeeded."""

    def close(self) -> None:
        """Closes the connection."""


@dataclass(frozen=True)
class Watch:
    """What to do about a processor that hangs.

    Attributes:
        timeout_s: an activity that lasts longer is a stall; None: nothing is watched.
        on_stall: called once for each stall.
        step_timeout_s: the same for a step before there is a processor; see `wait_for`.
    """

    timeout_s: float | None
    on_stall: Callable[[StallReport], None]
    step_timeout_s: float | None = None

    def give_up(self, error: JobError) -> None:
        """Reports a step that hangs."""
        self.on_stall(StallReport(error.message, stacks()))


class ScoringLoop:
    """Scores rows in this process while its context is open.

    Each file that it writes is told what it took: what the processor's statistics have grown by
    since the file before. Nothing is read ahead of a file's own rows, so the files of a loop that
    ends well add up to its totals; loading the model counts for the first one. What a file took
    that was not completed is in none.

    Args:
        spec: what scores them.
        slot: what this process has been given.
        reporter: receives the statistics, and is closed at the end.
        watch: what to do about a hang.
    """

    def __init__(
        self,
        spec: ProcessorSpec,
        slot: WorkerSlot,
        reporter: Reporter,
        watch: Watch,
    ) -> None:
        self._spec = spec
        self._slot = slot
        self._reporter = reporter
        self._watch = watch
        self._processor: Any = None
        self._told = ScoringStatistics()
        self._watchdog: Watchdog | None = None

    @property
    def processor(self) -> Processor:
        """The open processor."""
        processor: Processor = self._processor
        return processor

    def __enter__(self) -> ScoringLoop:
        started = time.perf_counter()
        try:
            with watched_from_beside(
                "the start of this worker", self._watch.step_timeout_s, self._watch.give_up
            ):
                self._processor = self._spec.open(self._slot, self._reporter.send)
        except BaseException:
            self._reporter.close()
            raise
        self.processor.statistics.load_s = time.perf_counter() - started
        self._reporter.runs_on(machine(self._slot))
        self._watchdog = Watchdog(
            self.processor.activities, self._watch.timeout_s, self._watch.on_stall
        )
        self._watchdog.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watchdog is not None:
            self._watchdog.__exit__(kind, error, trace)
        try:
            if error is None:
                self._reporter.finish(self.processor.statistics)
        finally:
            self._reporter.close()

    @contextmanager
    def at(self, where: str, attempt: Attempt | None) -> Iterator[None]:
        """Says what the next rows are: for a report of a hang, and in case they kill this process.

        Args:
            where: names them.
            attempt: at them; None: nothing is noted.
        """
        if self._watchdog is not None:
            self._watchdog.where = where
        with Suspects(attempt) as suspects:
            if isinstance(self.processor, AvoidsSuspects):
                self.processor.suspects = suspects
            yield

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields the added columns of every row, in order; see `Processor`."""
        return self.processor.process(batches)

    def write(
        self, name: str, writer: ScoredWriter, batches: Iterable[pa.RecordBatch]
    ) -> WrittenFile:
        """Scores rows and writes them to one Parquet file as they come.

        Args:
            name: of the file.
            writer: writes it.
            batches: the rows, with the columns that the run reads.

        Raises:
            RowConservationError: the processor did not give each row its columns.
        """
        pairs = ((batch, batch) for batch in batches)
        process, statistics = self._processor.process, self.processor.statistics
        return self._complete(writer.write(name, pairs, process, statistics))

    def write_encoded(
        self, name: str, writer: ScoredWriter, windows: Iterable[tuple[Any, pa.RecordBatch]]
    ) -> WrittenFile:
        """Scores rows that were encoded in advance; see `write`.

        Args:
            name: of the file.
            writer: writes it.
            windows: encoded rows, each with their carried columns.
        """
        process, statistics = self._processor.process_encoded, self.processor.statistics
        return self._complete(writer.write(name, windows, process, statistics))

    def _complete(self, file: WrittenFile) -> WrittenFile:
        tally = file.tally
        if not self._spec.replaces_rows and tally.rows != tally.read:
            raise RowConservationError(
                f"{tally.read} rows were read, but {tally.rows} were scored; nothing of them was "
                "published. This is a fault of what scores them"
            )
        now = replace(self.processor.statistics)
        tally.statistics, self._told = now.since(self._told), now
        tally.devices = {self._slot.device_name: tally.statistics.rows}
        return file
