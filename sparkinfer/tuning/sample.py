"""Rows of the input, and how fast a model scores them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import InputError, JobError
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel
from sparkinfer.models.scorer import Scorer, Window, plain_columns
from sparkinfer.option_groups import BatchingConfig

MOST_ROWS = 512

LEAST_ROWS = 32

MEASURED_S = 1.5
"""Seconds for which the sample is scored, over and over, at least once."""


@dataclass(frozen=True)
class Timed:
    """How fast a model has scored a sample.

    Attributes:
        scored: the columns that it adds, a row for each of the sample.
        rows_per_s: rows.
        tokens_per_s: tokens that went through the model, padding excluded.
        batches: of the sample.
        out_of_memory: how often a batch did not fit in memory.
    """

    scored: pa.RecordBatch
    rows_per_s: float
    tokens_per_s: float
    batches: int
    out_of_memory: int


def first_rows(batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> pa.RecordBatch:
    """Returns the first rows of an input, at most `MOST_ROWS`.

    Raises:
        InputError: there are none.
    """
    found: list[pa.RecordBatch] = []
    missing = MOST_ROWS
    for batch in batches:
        found.append(plain_columns(batch.slice(0, missing), columns))
        missing -= found[-1].num_rows
        if missing == 0:
            break
    if missing == MOST_ROWS:
        raise InputError(
            "the input has no rows, expected some to measure with; give one that has rows"
        )
    return pa.Table.from_batches(found).combine_chunks().to_batches()[0]


def affordable(
    model: RunningModel, options: ModelOptions, rows: pa.RecordBatch, pass_s: float
) -> pa.RecordBatch:
    """Returns as many of the rows as the model scores within some seconds, at least `LEAST_ROWS`.

    Where none of the first ones has a text, all of them.
    """
    scorer, window = _prepared(model, options, rows.slice(0, LEAST_ROWS))
    if not window.batches:
        return rows
    _warm_up(scorer, window)
    started = time.perf_counter()
    scorer.score(window)
    passed_s = time.perf_counter() - started
    return rows.slice(0, max(LEAST_ROWS, int(LEAST_ROWS * pass_s / passed_s)))


def measured(
    model: RunningModel, options: ModelOptions, rows: pa.RecordBatch, least_s: float = MEASURED_S
) -> Timed:
    """Returns how fast a model scores rows, in the batches in which a worker scores them.

    They are tokenised before, as a thread of the worker does it beside the model.

    Args:
        model: ready.
        options: its columns and budgets.
        rows: with those columns.
        least_s: seconds to go on for.

    Raises:
        InputError: none of the rows has a text.
    """
    scorer, window = _prepared(model, options, rows)
    if not window.batches:
        raise InputError(
            f"none of the first {rows.num_rows} rows has a text that can be scored, expected some "
            "to measure with; name another column, or give an input that begins with other rows"
        )
    _warm_up(scorer, window)
    started, passes = time.perf_counter(), 0
    while not passes or time.perf_counter() - started < least_s:
        scored = scorer.score(window)
        passes += 1
    passes_per_s = passes / (time.perf_counter() - started)
    return Timed(
        scored,
        rows.num_rows * passes_per_s,
        window.tokens * passes_per_s,
        len(window.batches),
        scorer.statistics.out_of_memory,
    )


def count_batches(model: RunningModel, options: ModelOptions, rows: pa.RecordBatch) -> int:
    """Returns in how many batches a worker would score rows."""
    return len(_prepared(model, options, rows)[1].batches)


def _prepared(
    model: RunningModel, options: ModelOptions, rows: pa.RecordBatch
) -> tuple[Scorer, Window]:
    scorer = Scorer(model, options)
    return scorer, scorer.cut(scorer.encoder.encode(rows, scorer.suspects))


def _warm_up(scorer: Scorer, window: Window) -> None:
    """Scores the longest and the shortest batch: what is made on first use is made now."""
    ends = [window.batches[0], window.batches[-1]]
    scorer.score(replace(window, batches=ends))


def with_batch_tokens(options: ModelOptions, tokens: int) -> ModelOptions:
    """Returns the options with another budget of a batch."""
    values: dict[str, Any] = {**options.batching.as_dict(), "max_batch_tokens": tokens}
    return replace(options, batching=BatchingConfig(**values))


def refuse_failing(scored: pa.RecordBatch) -> None:
    """Raises JobError if every row has an error."""
    errors = scored.column("error")
    if errors.null_count == 0:
        raise JobError(
            f"the model fails on all of the first {len(errors)} rows ({errors[0]}), expected "
            "scores to compare with; try it on a few of them with sparkinfer.load"
        )


@dataclass(frozen=True)
class Compared:
    """How scored rows differ from those of the reference.

    Attributes:
        difference: largest one of the task's numbers, where both have some; None: they cannot be
            compared one by one.
        changed: share of the rows in which something that is no number with a fraction differs.
        failed: rows with an error that they do not have in the reference.
    """

    difference: float | None
    changed: float
    failed: int


def compared(model: RunningModel, expected: pa.RecordBatch, found: pa.RecordBatch) -> Compared:
    """Returns how scored rows differ from those of the reference."""
    labels = [[_without_fractions(row) for row in one.to_pylist()] for one in (expected, found)]
    changed = sum(was != is_now for was, is_now in zip(*labels, strict=True))
    errors = [one.column("error").is_null().to_pylist() for one in (expected, found)]
    failed = sum(was and not is_now for was, is_now in zip(*errors, strict=True))
    both = pa.array([was and is_now for was, is_now in zip(*errors, strict=True)])
    names = model.task.schema.names
    pairs = [one.filter(both).select(names) for one in (expected, found)]
    largest = model.task.difference(*pairs)
    return Compared(None if largest != largest else largest, changed / expected.num_rows, failed)


def _without_fractions(value: Any) -> Any:
    """Returns a value of Arrow's without its numbers with a fraction."""
    if isinstance(value, dict):
        return {name: _without_fractions(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_fractions(one) for one in value]
    return None if isinstance(value, float) else value
