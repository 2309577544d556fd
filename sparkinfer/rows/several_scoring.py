"""Runs several processors over windows of rows, which are read once and encoded once.

While the models work on a window the next one is encoded. Models that do not fit on the device
together take turns over many windows: each scores what the one before it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.batching.rebatch import growing_rows, rebatch
from sparkinfer.batching.runs import hash_inputs, whole_runs
from sparkinfer.models.encoded import EncodedRows, EncodedWindow
from sparkinfer.models.residence import Residence
from sparkinfer.models.scorer import Scorer, Window, plain_columns
from sparkinfer.models.window_loop import score_windows
from sparkinfer.rows.processor import AvoidsSuspects, Processor, Report
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Activity

TURN_BYTES = 2**30
"""Token ids and columns of the windows of a turn, in host memory; a chunk seldom has as many."""


@dataclass
class _Ready:
    """A window that waits for its scores.

    Attributes:
        window: the rows, and their inputs by encoding.
        cut: what each processor is given of it; none yet where models take turns.
    """

    window: EncodedWindow
    cut: list[Any] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        encoded = [one.inputs.encoded for one in self.window.encoded]
        ids = sum(values.nbytes for one in encoded for values in one.columns.values())
        return ids + int(self.window.rows.nbytes)


class Part(Protocol):
    """One of several processors.

    Attributes:
        processor: what it is.
    """

    @property
    def processor(self) -> Processor: ...  # noqa: D102

    def cut(self, window: EncodedWindow) -> Any:
        """Returns what it needs of a window; works on the CPU."""

    def score(self, cut: Any) -> pa.RecordBatch:
        """Returns its columns for the rows of a window."""


class ModelPart:
    """A model, which takes what was encoded.

    Args:
        scorer: the model's.
        encoding: which of a window's encodings is its own.
    """

    def __init__(self, scorer: Scorer, encoding: int) -> None:
        self.processor = scorer
        self.encoding = encoding

    def cut(self, window: EncodedWindow) -> Window:
        """Returns the window in batches; see `Scorer.cut`."""
        return self.processor.cut(window.encoded[self.encoding])

    def score(self, cut: Window) -> pa.RecordBatch:
        """Returns the model's columns; see `Scorer.score`."""
        return self.processor.score(cut)


class RowsPart:
    """Anything else, which takes rows.

    Args:
        processor: what it is.
        inputs: columns that it reads.
        schema: of the columns that it adds.
    """

    def __init__(self, processor: Processor, inputs: Sequence[str], schema: pa.Schema) -> None:
        self.processor = processor
        self._inputs = list(inputs)
        self._schema = schema

    def cut(self, window: EncodedWindow) -> pa.RecordBatch:
        """Returns its columns of the window."""
        columns = [window.rows.column(name) for name in self._inputs]
        return pa.RecordBatch.from_arrays(columns, names=self._inputs)

    def score(self, cut: pa.RecordBatch) -> pa.RecordBatch:
        """Returns what it adds to the rows."""
        return joined(self.processor.process([cut]), self._schema)


class SeveralScoring:
    """Scores rows with several processors; a `Processor`.

    Args:
        inputs: columns that any of them reads.
        schema: of the columns that they add.
        limits: most rows of a window, and most bytes.
        residence: the models.
        report: called with the statistics so far as they work.
        dedupe: whether equal inputs follow one another, so that none need be scored again.

    Attributes:
        statistics: of all of them; a row counts once, with an error if any has one.
        residence: as given.
        parts: by their names.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        schema: pa.Schema,
        limits: tuple[int, int],
        residence: Residence,
        report: Report,
        dedupe: bool = False,
    ) -> None:
        self.statistics = ScoringStatistics()
        self.residence = residence
        self.parts: dict[str, Part] = {}
        self._inputs = inputs
        self._schema = schema
        self._limits = limits
        self._report = report
        self._dedupe = dedupe
        self._suspects = Suspects()
        self._encode_s = 0.0

    def add(self, name: str, part: Part) -> None:
        """Adds a processor."""
        self.parts[name] = part

    @property
    def suspects(self) -> Suspects:
        """Of the rows that come next."""
        return self._suspects

    @suspects.setter
    def suspects(self, suspects: Suspects) -> None:
        self._suspects = suspects
        for part in self.parts.values():
            if isinstance(part.processor, AvoidsSuspects):
                part.processor.suspects = suspects

    def activities(self) -> Sequence[Activity | None]:
        """Returns what each thread of each processor is doing."""
        return [one for part in self.parts.values() for one in part.processor.activities()]

    def report(self, _: ScoringStatistics) -> None:
        """Adds up what the processors have done and passes it on."""
        total = ScoringStatistics(tokenize_s=self._encode_s)
        for part in self.parts.values():
            total.add(part.processor.statistics)
        done = (total.rows + total.rows_in_window) // len(self.parts)
        for name in _ADDED_UP:
            setattr(self.statistics, name, getattr(total, name))
        self.statistics.rows_in_window = max(0, done - self.statistics.rows)
        self._report(self.statistics)

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields the columns of all processors for every row, in order; see `Processor`."""
        columns = (plain_columns(batch, self._inputs) for batch in batches)
        rows, size = self._limits
        windows = rebatch(columns, growing_rows(rows), size)
        if self._dedupe:
            windows = whole_runs(windows, hash_inputs)
        yield from self._score(windows, self._encode)

    def process_encoded(self, windows: Iterable[EncodedWindow]) -> Iterator[pa.RecordBatch]:
        """Yields the same for rows that were encoded ahead; each item is a window."""
        yield from self._score(windows, lambda window: window)

    def _encode(self, rows: pa.RecordBatch) -> EncodedWindow:
        started = time.perf_counter()
        encoded: dict[int, EncodedRows] = {}
        for part in self.parts.values():
            if isinstance(part, ModelPart) and part.encoding not in encoded:
                encoder = part.processor.encoder
                encoded[part.encoding] = encoder.encode(rows, self._suspects)
        self._encode_s += time.perf_counter() - started
        return EncodedWindow(tuple(encoded[number] for number in sorted(encoded)), rows)

    def _score(
        self, windows: Iterable[Any], encode: Callable[[Any], EncodedWindow]
    ) -> Iterator[pa.RecordBatch]:
        """Yields the columns for windows as they are given."""

        def prepare(given: Any) -> _Ready:
            window = encode(given)
            if self.residence.takes_turns:
                return _Ready(window)
            return _Ready(window, [part.cut(window) for part in self.parts.values()])

        def ready(score: Callable[[_Ready], Any]) -> Iterator[Any]:
            return score_windows(windows, prepare, score, self._suspects, self.statistics)

        if not self.residence.takes_turns:
            yield from ready(self._score_window)
            return
        for turn in _turns(ready(lambda one: one)):
            yield from self._score_turn(turn)

    def _score_window(self, ready: _Ready) -> pa.RecordBatch:
        pairs = zip(self.parts.values(), ready.cut, strict=True)
        return self._beside([part.score(cut) for part, cut in pairs])

    def _score_turn(self, turn: Sequence[_Ready]) -> Iterator[pa.RecordBatch]:
        """Yields the columns of many windows, which one processor after the other scores."""
        scored: dict[str, list[pa.RecordBatch]] = {}
        for name in self.residence.order(self.parts):
            self.residence.bring(name)
            part, windows = self.parts[name], (ready.window for ready in turn)
            mine = score_windows(windows, part.cut, part.score, self._suspects, self.statistics)
            scored[name] = list(mine)
        for of_window in zip(*(scored[name] for name in self.parts), strict=True):
            yield self._beside(of_window)

    def _beside(self, scored: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """Returns the columns of all processors for some rows, and counts the rows."""
        self.count(scored, scored[0].num_rows)
        columns = [column for batch in scored for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, names=self._schema.names)

    def count(self, scored: Sequence[pa.RecordBatch], rows: int) -> None:
        """Adds rows to the statistics; one has an error, or is truncated, if it is in any part."""
        failed = np.zeros(rows, np.bool_)
        truncated = np.zeros(rows, np.bool_)
        for batch in scored:
            *_, cut_off, error = batch.columns
            failed |= error.is_valid().to_numpy(zero_copy_only=False)
            truncated |= pc.fill_null(cut_off, False).to_numpy(zero_copy_only=False)
        self.statistics.rows += rows
        self.statistics.errors += int(failed.sum())
        self.statistics.truncated += int(truncated.sum())
        self.report(self.statistics)


_OF_ALL = frozenset(
    {"rows", "rows_in_window", "errors", "truncated"}
    | {"load_s", "read_s", "wait_s", "write_s", "write_wait_s"}
)
"""Figures that processors have together."""

_ADDED_UP = [one.name for one in fields(ScoringStatistics) if one.name not in _OF_ALL]
"""Figures of all processors together that are the sums of theirs."""


def _turns(ready: Iterable[_Ready]) -> Iterator[list[_Ready]]:
    """Yields windows in lists of about `TURN_BYTES`."""
    held: list[_Ready] = []
    size = 0
    for one in ready:
        held.append(one)
        size += one.nbytes
        if size >= TURN_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def joined(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Returns batches as one, with the names of a schema."""
    parts = list(batches)
    if len(parts) == 1:
        return pa.RecordBatch.from_arrays(parts[0].columns, names=schema.names)
    arrays = [
        pa.concat_arrays([part.column(index) for part in parts])
        if parts
        else pa.array([], column.type)
        for index, column in enumerate(schema)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=schema.names)
