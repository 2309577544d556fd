"""The scores that a model gives to labels, whichever order it has them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.comparing.kinds.base import Numbers
from sparkinfer.comparing.values import Integers


class Scores(NamedTuple):
    """Scores of labels, one after the other.

    Attributes:
        rows: row of each, int64 (scores,), growing.
        labels: number of its label, int64 (scores,); each is there once in a row.
        values: float64 (scores,).
    """

    rows: Integers
    labels: Integers
    values: Numbers


def scores_of(lists: pa.ChunkedArray, labels: Integers) -> Scores:
    """Returns the scores of rows.

    Args:
        lists: of each row; it may be null.
        labels: number of the label of each score, over all rows.
    """
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    values = pc.list_flatten(lists).to_numpy().astype(np.float64)
    return Scores(np.repeat(np.arange(len(lengths)), lengths), labels, values)


def label_numbers(lists: pa.ChunkedArray, names: Integers) -> Integers:
    """Returns the numbers of the labels of each row's scores, where all rows have the same labels.

    Args:
        lists: scores of each row, in the order of the labels, or null.
        names: number of each label.
    """
    given = len(lists) - lists.null_count
    return np.tile(names, given)


def unlike_scores(a: Scores, b: Scores) -> Scores:
    """Returns how far the scores of each label are apart that both have in a row, by rows."""
    most = 1 + max(a.labels.max(initial=0), b.labels.max(initial=0))
    _, in_a, in_b = np.intersect1d(
        a.rows * most + a.labels, b.rows * most + b.labels, assume_unique=True, return_indices=True
    )
    return Scores(a.rows[in_a], a.labels[in_a], np.abs(a.values[in_a] - b.values[in_b]))


def largest_of_rows(scores: Scores, rows: int) -> Numbers:
    """Returns the largest score of each of so many rows, NaN for a row without any."""
    largest = np.full(rows, np.nan)
    starts = np.flatnonzero(np.diff(scores.rows, prepend=-1))
    if len(starts):
        largest[scores.rows[starts]] = np.maximum.reduceat(scores.values, starts)
    return largest


def of_label(scores: Scores, labels: Integers) -> Numbers:
    """Returns the score of one label of each row, NaN where it has none.

    Args:
        scores: of the rows.
        labels: number of the label for each row.
    """
    found = np.full(len(labels), np.nan)
    is_wanted = scores.labels == labels[scores.rows]
    found[scores.rows[is_wanted]] = scores.values[is_wanted]
    return found


class LabelNumbers:
    """Numbers for the names of labels, the same for both outputs and in all parts."""

    def __init__(self) -> None:
        self._numbers: dict[str | None, int] = {}

    def of_names(self, names: Sequence[str]) -> Integers:
        """Returns the number of each label of a model; names that repeat are told apart."""
        times: Counter[str] = Counter()
        found = []
        for name in names:
            times[name] += 1
            found.append(self._number(name if times[name] == 1 else f"{name} ({times[name]})"))
        return np.array(found, np.int64)

    def of_column(self, column: pa.ChunkedArray) -> Integers:
        """Returns the number of each value, int64 (rows,)."""
        encoded = pa.concat_arrays([pa.array([], column.type), *column.chunks]).dictionary_encode()
        numbers = [self._number(name) for name in (*encoded.dictionary.to_pylist(), None)]
        indices = pc.fill_null(encoded.indices, len(numbers) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(np.array(numbers, np.int64)[indices])

    def _number(self, name: str | None) -> int:
        return self._numbers.setdefault(name, len(self._numbers))
