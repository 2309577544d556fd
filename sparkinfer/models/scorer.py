"""The scorer: batches of rows in, scored batches out, in the same order.

A thread tokenises the next window while the model works on the current one. Within a window,
repeated inputs are scored once, and sequences of similar length share a batch. A batch that fails
is cut in two until the failing sequence is alone; a batch that does not fit in memory halves the
budget, which grows again later, and scoring continues with the same sequences. On a GPU a batch is
launched before the output of the one before is decoded; one that fails so is run again by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.batching.budget import TokenBudget
from sparkinfer.batching.planner import IntArray, plan_batches
from sparkinfer.batching.rebatch import growing_rows, rebatch
from sparkinfer.batching.runs import hash_inputs, whole_runs
from sparkinfer.exceptions import DeviceError
from sparkinfer.messages import first_line
from sparkinfer.models.careful import (
    MODEL,
    give_up_deadly,
    hashes_of_sequences,
    split_suspects,
)
from sparkinfer.models.encoded import Encoded, EncodedRows, EncodedWindow, Inputs
from sparkinfer.models.in_flight import one_in_flight
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.requests import Requests, Row
from sparkinfer.models.row_encoder import RowEncoder
from sparkinfer.models.running import RunningModel
from sparkinfer.models.tasks.base import Tensors, scored_schema
from sparkinfer.models.window_loop import score_windows
from sparkinfer.workers.devices import breaks_device, is_out_of_memory, release_memory
from sparkinfer.workers.pinned import keep_all
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Activity, ForwardPass

DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Token budget by kind of device: rates measured on a CPU stop growing beyond it."""

NULL_TEXT = "text is null"
"""The `error` of a row without a text."""

NOT_FINITE = "model: the output is not finite (NaN or infinity)"
"""The `error` of a row whose logits overflowed."""


Batch = tuple[IntArray, Tensors]
"""Sequences, and their tensors."""

_InLane = tuple[IntArray, Tensors, str]
"""The same, and where it is noted while it is in flight."""

Scored = list[tuple[IntArray, pa.RecordBatch]]
"""Sequences, and what the task decoded of them."""


@dataclass(frozen=True)
class Window:
    """Rows that are read ahead together, tokenised and cut into batches for one model."""

    rows: EncodedRows
    tokens: int  # of the sequences that go through the model
    batches: list[Batch]
    alone: int  # so many of the first batches are each a suspect


@dataclass(frozen=True)
class _Size:
    """The size of a batch.

    Attributes:
        rows: sequences.
        longest: tokens of the longest, those that the model makes included.
        tokens: of all, padding excluded.
        padded: likewise, padding and what the model makes included.
    """

    rows: int
    longest: int
    tokens: int
    padded: int


class Scorer:
    """Scores rows with one running model; a `Processor`.

    Args:
        model: what runs on the accelerator.
        options: its input columns, budgets and window sizes.
        report: called with the statistics so far after each forward pass.
        name: of the model among several that score the same rows; empty if it is the only one.

    Attributes:
        encoder: makes its inputs of rows.
        statistics: what it has done so far.
        schema: of the columns that it adds, without a prefix.
        suspects: inputs that may have killed a worker, and where to note what runs.
    """

    def __init__(
        self,
        model: RunningModel,
        options: ModelOptions,
        report: Callable[[ScoringStatistics], None] | None = None,
        name: str = "",
    ) -> None:
        self.statistics = ScoringStatistics()
        self.schema = scored_schema(model.task.task)
        self.suspects = Suspects()
        self.encoder = RowEncoder(options.texts, model.encode, name)
        self._model = model
        self._name = name
        self._columns = options.columns
        self._texts = options.texts
        self._batching = options.batching
        self._dedupe = options.dedupe
        self._budget = TokenBudget(options.batching.max_batch_tokens or default_tokens(model))
        self._report = report
        self._forwarding: ForwardPass | None = None  # for the watchdog; see `RowEncoder.activity`

    def activities(self) -> tuple[Activity | None, Activity | None]:
        """Returns what the model and the tokenizer are doing now, None for one that waits.

        An object represents one activity: the next one, even if equal, is another object.
        """
        return self._forwarding, self.encoder.activity

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields the scored columns of every row, in the order of the rows.

        The output batches have as many rows in total as the input batches, but are cut differently.
        Closing the iterator stops the thread and leaves the rest of the input unread.

        Args:
            batches: rows with the input columns; others are ignored.

        Raises:
            DeviceError: the accelerator's context is broken; the process must exit.
        """
        limits = growing_rows(self._batching.window_rows)
        windows = rebatch(map(self._input_columns, batches), limits, self._batching.window_bytes)
        if self._dedupe:
            windows = whole_runs(windows, hash_inputs)
        yield from self._score_windows(windows, lambda rows: self.cut(self._tokenize(rows)))

    def process_encoded(self, windows: Iterable[EncodedWindow]) -> Iterator[pa.RecordBatch]:
        """Yields the scored columns of rows that are already tokenised, in order.

        Each item is a window: its rows share batches with each other and not with other windows'.

        Args:
            windows: rows with the token ids of this model's tokenizer.

        Raises:
            DeviceError: see `process`.
        """
        yield from self._score_windows(windows, lambda window: self.cut(window.encoded[0]))

    @cached_property
    def requests(self) -> Requests:
        """Takes rows one by one, from any thread; not while `process` is used otherwise."""
        return Requests(self.process, self._columns, self._check_types)

    def submit(self, text: Any) -> Future[Row]:
        """Returns what will hold the scored row of a text; see `Requests`."""
        return self.requests.submit(text)

    async def asubmit(self, text: Any) -> Row:
        """Returns the scored row of a text, without keeping the event loop waiting."""
        return await self.requests.asubmit(text)

    def _check_types(self, inputs: pa.Schema) -> None:
        for text in self._texts:
            text.made_of.check_types(inputs)

    def _input_columns(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return plain_columns(batch, self._columns)

    def _score_windows(
        self, windows: Iterable[Any], prepare: Callable[[Any], Window]
    ) -> Iterator[pa.RecordBatch]:
        yield from score_windows(windows, prepare, self.score, self.suspects, self.statistics)

    def _tokenize(self, rows: pa.RecordBatch) -> EncodedRows:
        """Tokenises a window; runs in the look-ahead thread."""
        with self._taking("tokenize_s"):
            return self.encoder.encode(rows, self.suspects)

    def cut(self, rows: EncodedRows) -> Window:
        """Cuts a window into padded batches; runs in the look-ahead thread.

        Args:
            rows: tokenised for this model and maybe others; they stay as they are.
        """
        with self._taking("tokenize_s"):
            return self._cut(rows)

    def _cut(self, rows: EncodedRows) -> Window:
        encoded = replace(rows.inputs.encoded, errors=dict(rows.inputs.encoded.errors))
        rows = replace(rows, inputs=replace(rows.inputs, encoded=encoded))
        self._refuse_unknown_tokens(encoded)
        give_up_deadly(encoded, self.suspects, self._name)
        sequences = _sequences_of_rows(rows)
        alone, wanted = split_suspects(encoded, sequences, self.suspects, self._name)
        planned = [alone[index : index + 1] for index in range(len(alone))]
        planned += [wanted[batch] for batch in self._plan(encoded.n_tokens[wanted])]
        batches = [(batch, self._model.collate(encoded, batch)) for batch in planned]
        tokens = int(encoded.n_tokens[alone].sum() + encoded.n_tokens[wanted].sum())
        return Window(rows, tokens, batches, len(alone))

    def _refuse_unknown_tokens(self, encoded: Encoded) -> None:
        """Gives texts with a token that the model does not have an error.

        On a GPU such a token would break the device for every text.
        """
        vocabulary = self._model.vocabulary
        if vocabulary is not None:
            for sequence, token in encoded.beyond(vocabulary).items():
                reason = f"tokenizer: token {token}, but the model has only {vocabulary} tokens"
                encoded.errors.setdefault(sequence, reason)

    def _plan(self, lengths: npt.NDArray[np.int64]) -> list[IntArray]:
        own, shared = self._model.own_batch_tokens is not None, self._model.layout.shared
        most = self._batching.window_rows if own else self._batching.max_batch_rows
        return plan_batches(
            self._model.encoder.padded_lengths(lengths) + self._model.task.made_tokens,
            max_tokens=self._budget.tokens,
            max_rows=1 if shared == "nothing" and not own else most,
            mixes_lengths=shared == "any length",
            pads_freely=own,
        )

    def score(self, window: Window) -> pa.RecordBatch:
        """Returns the scored columns of a window's rows, in order.

        Raises:
            DeviceError: see `process`.
        """
        encoded = window.rows.inputs.encoded
        errors = dict(encoded.errors)
        scored: Scored = []
        through = 0
        of_batches = self._score_batches(window, errors)
        for (sequences, _), of_batch in zip(window.batches, of_batches, strict=True):
            scored += of_batch
            through += int(encoded.n_tokens[sequences].sum())
            # By tokens: the longest come first, so that by rows the end would seem too far off.
            share = through / window.tokens
            self.statistics.rows_in_window = int(share * len(window.rows.indices))
            if self._report is not None:
                self._report(self.statistics)
        for lane in MODEL:
            self.suspects.running(lane, ())
        with self._taking("decode_s"):
            return self._assemble(window.rows, scored, errors)

    def _score_batches(self, window: Window, errors: dict[int, str]) -> Iterator[Scored]:
        """Yields what comes of each batch; adds sequences that fail alone to `errors`.

        Where a worker has died over some of the rows, one batch runs at a time.
        """
        encoded = window.rows.inputs.encoded
        if self._model.overlaps and not self.suspects.known:
            batches = [(*batch, lane) for batch, lane in zip(window.batches, cycle(MODEL))]
            land = partial(self._land, encoded, errors)
            yield from one_in_flight(batches, partial(self._launch, encoded), land)
            return
        for number, batch in enumerate(window.batches):
            yield self._score_batch(encoded, batch, errors, number < window.alone)

    def _launch(self, encoded: Encoded, batch: _InLane) -> Callable[[], Any] | None:
        """Begins with a batch; returns what waits for its output, None if it cannot be launched."""
        sequences, tensors, lane = batch
        size = self._size(encoded, sequences)
        if self._is_too_large(size):
            return None
        self._note(encoded, sequences, lane)
        self._forwarding = ForwardPass(size.rows, size.longest)
        try:
            with self._taking("forward_s"):
                return self._model.launch(tensors)
        except Exception as error:
            self._failure(error)
            return None
        finally:
            self._forwarding = None

    def _land(
        self,
        encoded: Encoded,
        errors: dict[int, str],
        batch: _InLane,
        wait: Callable[[], Any] | None,
        is_followed: bool,
    ) -> Scored:
        """Returns what comes of a batch that was launched; one that fails is run from the start.

        Args:
            encoded: holds its sequences.
            errors: see `_score_batch`.
            batch: as it was launched.
            wait: for its output; None if it could not be launched.
            is_followed: whether the next one is under way.
        """
        sequences, tensors, lane = batch
        size = self._size(encoded, sequences)
        scored = None if wait is None else self._landed(wait, tensors, size, is_followed)
        if scored is None:
            return self._score_batch(encoded, (sequences, tensors), errors, False, lane)
        self._count_batch(size)
        return [(sequences, scored)]

    def _landed(
        self, wait: Callable[[], Any], tensors: Tensors, size: _Size, is_followed: bool
    ) -> pa.RecordBatch | None:
        """Returns a batch that was launched, scored; None if it failed."""
        self._forwarding = ForwardPass(size.rows, size.longest)  # not that of its launch
        try:
            with self._taking("forward_s"):
                output = wait()
            # While the next one is under way, no time passes without a forward pass.
            with self._taking("forward_s" if is_followed else "decode_s"):
                return self._model.decode(output, tensors)
        except Exception as error:
            self._failure(error)
            return None
        finally:
            self._forwarding = None

    def _score_batch(
        self,
        encoded: Encoded,
        batch: Batch,
        errors: dict[int, str],
        is_alone: bool,
        lane: str = MODEL[0],
    ) -> Scored:
        """Scores one batch, in parts where needed; adds sequences that fail alone to `errors`."""
        done = []
        waiting: list[tuple[IntArray, Tensors | None]] = [batch]
        while waiting:
            part, padded = waiting.pop()
            self._note(encoded, part, lane, is_alone)
            scored, failure = self._score_part(encoded, part, padded)
            if is_alone:
                self.suspects.running(lane, ())
            if scored is not None:
                done.append((part, scored))
            elif len(part) == 1:
                errors[int(part[0])] = f"model: {failure}"
            else:
                middle = len(part) // 2
                waiting += [(part[middle:], None), (part[:middle], None)]
        return done

    def _note(self, encoded: Encoded, part: IntArray, lane: str, is_alone: bool = False) -> None:
        """Notes what is about to run, where it is noted."""
        if self.suspects.is_noting:
            hashes = hashes_of_sequences(encoded, part, self._name)
            self.suspects.running(lane, hashes, alone=is_alone)

    def _score_part(
        self, encoded: Encoded, part: IntArray, tensors: Tensors | None
    ) -> tuple[pa.RecordBatch | None, str | None]:
        """Returns scored sequences, or why there are none: None if they exceed the budget."""
        size = self._size(encoded, part)
        if self._is_too_large(size):
            return None, None
        tensors = tensors or self._model.collate(encoded, part)
        scored, failure = self._forward(tensors, size)
        if failure is not None and failure.startswith(_OUT_OF_MEMORY):
            self._make_room(size)
            if len(part) == 1:
                scored, failure = self._forward(tensors, size)
        if failure is None:
            self._count_batch(size)
        return scored, failure

    def _size(self, encoded: Encoded, part: IntArray) -> _Size:
        lengths, made = encoded.n_tokens[part], self._model.task.made_tokens
        longest, rows = int(lengths.max()), len(part)
        padded = (self._model.encoder.batch_length(longest, rows) + made) * rows
        return _Size(rows, longest + made, int(lengths.sum()), padded)

    def _is_too_large(self, size: _Size) -> bool:
        """Returns whether it exceeds the budget, which may have shrunk since it was planned."""
        return size.rows > 1 and size.padded > self._budget.tokens

    def _forward(self, tensors: Tensors, size: _Size) -> tuple[pa.RecordBatch | None, str | None]:
        """Returns the scored batch, or what the model raised.

        The exception itself is not kept: its traceback would hold the batch's tensors.
        """

        def moved() -> None:
            self._forwarding = ForwardPass(size.rows, size.longest)  # another, for the watchdog

        moved()
        try:
            with self._taking("forward_s"):
                output = self._model.run(tensors, moved)
            with self._taking("decode_s"):
                return self._model.decode(output, tensors), None
        except Exception as error:
            return None, self._failure(error)
        finally:
            self._forwarding = None

    def _failure(self, error: Exception) -> str:
        """Returns what the model raised.

        Raises:
            DeviceError: see `process`.
        """
        if isinstance(error, DeviceError):
            raise error
        if is_out_of_memory(error):
            return f"{_OUT_OF_MEMORY}: {first_line(error)}"
        if breaks_device(error):
            keep_all()
            raise DeviceError(
                f"device {self._model.device} is broken ({first_line(error)}); the worker "
                "process ends so that a new one gets a clean device"
            ) from error
        return f"{type(error).__name__}: {first_line(error)}"

    @contextmanager
    def _taking(self, what: str) -> Iterator[None]:
        """Adds the seconds that something takes to a figure of the statistics."""
        started = time.perf_counter()
        try:
            yield
        finally:
            so_far = getattr(self.statistics, what)
            setattr(self.statistics, what, so_far + time.perf_counter() - started)

    def _make_room(self, size: _Size) -> None:
        """Frees cached memory, and halves the budget unless a single row was too much."""
        self.statistics.out_of_memory += 1
        if size.rows > 1:
            self._budget.shrink(size.padded)
        release_memory(self._model.device)

    def _count_batch(self, size: _Size) -> None:
        self._budget.fitted()
        self.statistics.batches += 1
        self.statistics.tokens += size.tokens
        self.statistics.padded_tokens += size.padded
        self.statistics.forward_rows += size.rows

    def _assemble(
        self, rows: EncodedRows, scored: Scored, errors: dict[int, str]
    ) -> pa.RecordBatch:
        """Returns one scored row per row of the window, in order."""
        inputs, indices = rows.inputs, rows.indices
        results, result_of = self._results(inputs, scored)
        take = np.append(result_of, -1)[indices]  # the last is for rows without an input
        taken = _take(results, pa.array(take, mask=take < 0))
        reasons = np.full(len(inputs) + 1, None, dtype=object)
        of_inputs = inputs.errors(errors)
        reasons[list(of_inputs)] = list(of_inputs.values())
        reasons[-1] = NULL_TEXT
        error = reasons[indices]
        for row, reason in rows.unreadable.items():
            error[row] = reason
        error[_are_null(taken) & (take >= 0)] = NOT_FINITE  # see `ModelTask.decode`
        is_null = indices < 0
        truncated = np.append(inputs.truncated, False)[indices]
        columns = [
            *taken,
            pa.array(np.append(inputs.n_tokens, 0)[indices], pa.int32(), mask=is_null),
            pa.array(truncated, pa.bool_(), mask=is_null),
            pa.array(error, pa.string()),
        ]
        self.statistics.rows += len(take)
        self.statistics.rows_in_window = 0
        self.statistics.errors += len(take) - columns[-1].null_count
        self.statistics.truncated += int(truncated.sum())
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _results(self, inputs: Inputs, scored: Scored) -> tuple[pa.Table, IntArray]:
        """Returns the task's columns, and for each input its row in them, -1 for none."""
        schema = self._model.task.schema
        row_of = np.full(len(inputs.encoded.n_tokens), -1, dtype=np.int64)
        if scored:
            order = np.concatenate([sequences for sequences, _ in scored])
            row_of[order] = np.arange(len(order))
        whole = inputs.whole(row_of >= 0)
        result_of = np.full(len(inputs), -1, dtype=np.int64)
        result_of[whole] = np.arange(len(whole))
        if not len(whole):
            return schema.empty_table(), result_of
        table = pa.Table.from_batches([batch for _, batch in scored]).combine_chunks()
        parts = table.take(pa.array(row_of[inputs.sequences_of(whole)])).combine_chunks()
        counts = inputs.counts[whole]
        starts = np.cumsum(counts) - counts
        joined = self._model.task.join(parts.to_batches()[0], starts, inputs.kept_of(whole))
        return pa.Table.from_batches([joined], schema), result_of


def _sequences_of_rows(rows: EncodedRows) -> IntArray:
    """Returns the sequences to run through the model: those of rows, except inputs with errors.

    An input with a sequence that could not be tokenised is not scored at all.
    """
    inputs = rows.inputs
    used = np.zeros(len(inputs) + 1, dtype=np.bool_)  # the last is for rows without an input
    used[rows.indices] = True
    used[list(inputs.errors(inputs.encoded.errors))] = False
    return inputs.sequences_of(np.flatnonzero(used[:-1]))


def plain_columns(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Returns some columns of a batch in the form in which windows are cut of them."""
    columns = [_plain(batch.column(name)) for name in names]
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def _plain(column: pa.Array) -> pa.Array:
    """Returns a column without a dictionary, which each slice of it would hold whole."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _take(table: pa.Table, indices: pa.Array) -> list[pa.Array]:
    """Returns a table's columns at these indices, null where the index is null."""
    taken = table.take(indices).combine_chunks()
    return [
        column.chunk(0) if column.num_chunks else pa.array([], column.type)
        for column in taken.columns
    ]


def _are_null(columns: Sequence[pa.Array]) -> npt.NDArray[np.bool_]:
    """Returns which rows are null in all columns."""
    nulls = [column.is_null().to_numpy(zero_copy_only=False) for column in columns]
    found: npt.NDArray[np.bool_] = np.logical_and.reduce(nulls)
    return found


_OUT_OF_MEMORY = "out of memory"


def default_tokens(model: RunningModel) -> int:
    """Returns the most tokens of a batch where none are given."""
    kind = "cuda" if model.device.startswith("cuda") else "cpu"
    return model.own_batch_tokens or DEFAULT_BATCH_TOKENS[kind]
