"""Which of several ways of running a model is fastest on texts as long as the job's.

What is run are the gate's own texts, made as long as some of the job's: one of the job's may kill
the process, and that is for a worker to find out, which isolates it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.exceptions import SparkInferError
from sparkinfer.logs import get_logger
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.encoded import EncodedRows
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.probes import PROBE_TEXTS
from sparkinfer.models.running import RunningModel
from sparkinfer.models.scorer import Scorer
from sparkinfer.workers.steps import step

logger = get_logger(__name__)

LEAST_BYTES = 1 << 20
"""Text of a job below which nothing is measured: some thousand rows, scored within a minute."""

SAMPLED_ROWS = 256
"""Rows whose lengths are taken."""

MEASURED_S = 1.5
"""For the first way, after a first batch; the others get as many batches."""

PATIENCE = 4
"""Times that, after which a slow way is given up."""

SHARE = 0.03
"""Of the job's time that measuring may take."""

MARGIN = 1.03
"""A way must be faster by this factor than one that is preferred to it."""

BYTES_PER_TOKEN = 4
"""Of text, roughly."""


@dataclass(frozen=True)
class Measured:
    """A way's speed.

    Attributes:
        tokens_per_s: tokens of one replica, padding excluded.
        cost_s: seconds that measuring took, its loading included.
    """

    tokens_per_s: float
    cost_s: float


class SpeedTrial:
    """Measures ways of running one model, one after the other.

    Args:
        options: how the model is run.
        ahead: what is known of the job.
    """

    def __init__(self, options: ModelOptions, ahead: RowsAhead) -> None:
        self._options = options
        self._ahead = ahead
        self._batches = 0  # that each way runs, known after the first
        self._spent_s = 0.0
        self._allowed_s: float | None = None

    @property
    def is_worth_it(self) -> bool:
        """Whether ways are measured: for a job that is so long that it pays."""
        options = self._options
        if options.acceleration != "auto" or options.way is not None:
            return False  # what is asked for is taken
        if options.gate.measure != "auto":
            return options.gate.measure == "always"
        size = self._ahead.text_bytes
        return size is not None and size >= LEAST_BYTES

    def has_time(self, next_s: float) -> bool:
        """Returns whether another way may be measured.

        Args:
            next_s: seconds that it may take.
        """
        if self._options.gate.measure == "always" or self._allowed_s is None:
            return True
        return self._spent_s + next_s <= self._allowed_s

    def measure(self, model: RunningModel, loading_s: float) -> Measured:
        """Returns a way's speed.

        Args:
            model: run in that way.
            loading_s: seconds that it took to load and to compare it.
        """
        started = time.perf_counter()
        with step("measuring how fast the model is"):
            rate = self._rate(model)
        measured = Measured(rate, loading_s + time.perf_counter() - started)
        if self._allowed_s is None:  # the first one is the job's own
            tokens = (self._ahead.text_bytes or 0) / BYTES_PER_TOKEN
            self._allowed_s = SHARE * tokens / (rate * self._ahead.replicas)
        else:
            self._spent_s += measured.cost_s
        return measured

    def _rate(self, model: RunningModel) -> float:
        batches = self._planned(model)
        model.score(batches[0][1])  # what is made on first use is made now
        wanted = self._batches or len(batches) * 10
        started, done, tokens = time.perf_counter(), 0, 0
        limit_s = MEASURED_S if not self._batches else PATIENCE * MEASURED_S
        while done < wanted and (not done or time.perf_counter() - started < limit_s):
            in_batch, tensors = batches[done % len(batches)]
            model.score(tensors)
            tokens += in_batch
            done += 1
        self._batches = self._batches or done
        return tokens / (time.perf_counter() - started)

    def _planned(self, model: RunningModel) -> list[tuple[int, Mapping[str, Any]]]:
        """Returns texts of the job's lengths in batches as a worker makes them, shuffled.

        Each batch comes with its tokens.
        """
        texts = _texts(_lengths(self._options, self._ahead))
        inputs = model.encode([texts] * len(self._options.texts))
        rows = EncodedRows(np.arange(len(inputs)), inputs)
        batches = Scorer(model, self._options).cut(rows).batches
        tokens = inputs.encoded.n_tokens
        order = np.random.default_rng(0).permutation(len(batches))
        return [(int(tokens[batches[one][0]].sum()), batches[one][1]) for one in order]


def _lengths(options: ModelOptions, ahead: RowsAhead) -> list[int]:
    """Returns bytes of texts: of the job's first rows, else of the gate's texts."""
    found: list[int] = []
    # What is wrong with the input is reported by the worker that has these rows to score.
    with suppress(SparkInferError, pa.ArrowException, OSError):
        for batch in ahead.first() if ahead.first is not None else ():
            found += _row_bytes(batch.slice(0, SAMPLED_ROWS - len(found)), options.columns)
            if len(found) >= SAMPLED_ROWS:
                break
    found = [one for one in found if one > 0]
    return found or [len(text) for text in PROBE_TEXTS if text] * (SAMPLED_ROWS // len(PROBE_TEXTS))


def _row_bytes(batch: pa.RecordBatch, columns: Sequence[str]) -> list[int]:
    """Returns the bytes of text of each row, those of all columns together."""
    total = np.zeros(batch.num_rows, np.int64)
    for name in columns:
        column = batch.column(batch.schema.get_field_index(name))
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            lengths = pc.fill_null(pc.binary_length(column), 0)
            total += np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)
    found: list[int] = total.tolist()
    return found


def _texts(lengths: Sequence[int]) -> list[str]:
    """Returns texts of about so many bytes, of which no two are equal."""
    words = " ".join(PROBE_TEXTS[2:7]).split()
    return [" ".join(_words(words, start, size)) for start, size in enumerate(lengths)]


def _words(words: Sequence[str], start: int, size: int) -> Iterator[str]:
    yield str(start)
    while size > 0:
        word = words[start % len(words)]
        yield word
        size -= len(word) + 1
        start += 1
