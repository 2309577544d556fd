"""Rescoring only the rows of an output that have an error; all others keep what they have."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.models.scorer import NULL_TEXT
from sparkinfer.rows.processor import AvoidsSuspects, Processor, ProcessorSpec, Report
from sparkinfer.rows.several import SeveralProcessors
from sparkinfer.rows.several_scoring import SeveralScoring, joined
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Activity

ERROR = "error"
"""Name of a scored column, without its prefix."""


@dataclass(frozen=True)
class Rescoring:
    """Has a processor score the rows with an error once more; see `ProcessorSpec`.

    It reads rows of an output, with the columns that the processor added. A row whose error is not
    gone keeps the one that it has. Rows without an input are not tried again. Of several
    processors, each scores only the rows in which its own error is set.

    Attributes:
        inner: the processor.
    """

    inner: ProcessorSpec

    replaces_rows = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the processor reads and what it added."""
        return (*self.inner.inputs, *self.inner.fields.names)

    @property
    def fields(self) -> pa.Schema:
        """The columns that the processor adds."""
        return self.inner.fields

    @property
    def prefix(self) -> str:
        """Of their names."""
        return self.inner.prefix

    def open(self, slot: WorkerSlot, report: Report) -> Processor:
        """Returns the processor with what picks its rows."""
        if isinstance(self.inner, SeveralProcessors):
            return _SeveralRescorers(self.inner, self.inner.open(slot, report))
        return _Rescorer(self.inner, self.inner.open(slot, report))


class _SeveralRescorers:
    """Has each of several processors rescore its own columns; a `Processor`."""

    def __init__(self, spec: SeveralProcessors, scoring: SeveralScoring) -> None:
        self._scoring = scoring
        self._rescorers = {
            name: _Rescorer(one, scoring.parts[name].processor)
            for name, one in spec.members.items()
        }
        self._names = spec.fields.names
        self.statistics = scoring.statistics

    @property
    def suspects(self) -> Suspects:
        return self._scoring.suspects

    @suspects.setter
    def suspects(self, suspects: Suspects) -> None:
        self._scoring.suspects = suspects

    def activities(self) -> Sequence[Activity | None]:
        return self._scoring.activities()

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            recovered: list[pa.Array] = []
            for name, rescorer in self._rescorers.items():
                self._scoring.residence.bring(name)
                recovered += joined(rescorer.process([batch]), rescorer.fields).columns
            scored = (part.processor.statistics.rows for part in self._scoring.parts.values())
            self.statistics.rows = max(scored)
            self._scoring.report(self.statistics)
            yield pa.RecordBatch.from_arrays(recovered, names=self._names)


class _Rescorer:
    """Picks the rows with an error and puts their new scores in place; a `Processor`."""

    def __init__(self, spec: ProcessorSpec, processor: Processor) -> None:
        self._spec = spec
        self.fields = spec.fields
        self._processor = processor
        self.statistics = processor.statistics
        self._suspects = Suspects()

    @property
    def suspects(self) -> Suspects:
        return self._suspects

    @suspects.setter
    def suspects(self, suspects: Suspects) -> None:
        self._suspects = suspects
        if isinstance(self._processor, AvoidsSuspects):
            self._processor.suspects = suspects

    def activities(self) -> Sequence[Activity | None]:
        return self._processor.activities()

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        waiting: deque[tuple[pa.Table, pa.Array]] = deque()

        def chosen() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                scored = pa.Table.from_batches([batch]).select(self.fields.names)
                wanted = _is_retryable(scored.column(self._spec.prefix + ERROR).combine_chunks())
                waiting.append((scored, wanted))
                yield batch.filter(wanted).select(list(self._spec.inputs))

        new = _Stretches(self._processor.process(chosen()))
        # Asking for new scores reads rows, even where none of them needs any.
        while waiting or new.advance() or waiting:
            if waiting:
                scored, wanted = waiting.popleft()
                yield self._merged(scored, wanted, new.take(pc.sum(wanted).as_py() or 0))

    def _merged(self, old: pa.Table, wanted: pa.Array, new: pa.Table) -> pa.RecordBatch:
        """Returns rows with the new values where there are such and they have no error."""
        rows = np.arange(old.num_rows)
        recovered = (
            new.column(ERROR).is_null().to_numpy() if new.num_rows else np.zeros(0, np.bool_)
        )
        places = np.flatnonzero(wanted.to_numpy(zero_copy_only=False))[recovered]
        rows[places] = old.num_rows + np.flatnonzero(recovered)
        names = [name.removeprefix(self._spec.prefix) for name in old.column_names]
        both = old.rename_columns(names)
        if new.num_rows:
            both = pa.concat_tables([pa.Table.from_arrays(both.columns, schema=new.schema), new])
        taken = both.take(pa.array(rows)).combine_chunks()
        return pa.RecordBatch.from_arrays([_whole(one) for one in taken.columns], names=names)


class _Stretches:
    """Takes rows off batches, in stretches of any length."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held: deque[pa.RecordBatch] = deque()

    def advance(self) -> bool:
        """Reads one more batch; returns whether there was one."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        if batch.num_rows:
            self._held.append(batch)
        return True

    def take(self, rows: int) -> pa.Table:
        """Returns the next rows, none for zero."""
        taken = []
        while rows:
            if not self._held and not self.advance():
                raise AssertionError("a processor yields as many rows as it is given")
            batch = self._held.popleft()
            if batch.num_rows > rows:
                self._held.appendleft(batch.slice(rows))
                batch = batch.slice(0, rows)
            taken.append(batch)
            rows -= batch.num_rows
        return pa.Table.from_batches(taken) if taken else pa.table({})


def _is_retryable(error: pa.Array) -> pa.Array:
    return pc.fill_null(pc.not_equal(error, NULL_TEXT), False)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
