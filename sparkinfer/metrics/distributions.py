"""How the lengths, labels and confidences of scored rows are distributed; adds up over workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.metrics.measure import N_TOKENS, TRUNCATED

LENGTH_EDGES = tuple(sorted({round(2 ** (step / 2)) for step in range(41)}))
"""Lower ends of the bins of lengths in tokens: 1, 2, 3, 4, 6, 8, 11, 16, …, two a doubling."""

CONFIDENCE_BINS = 50
"""Bins of equal width between 0 and 1."""

MOST_LABELS = 1_000
"""Labels that are counted by name."""

LABEL_LENGTH = 200
"""Characters of a label beyond which it is not counted by name."""

LABEL_COLUMNS = ("prediction", "finish_reason")
"""Columns that say what a row's label is, without their prefix; a task has one of them at most."""

PROBABILITY = "probability"

_EDGES = np.array(LENGTH_EDGES)


@dataclass
class Distributions:
    """Of the rows of one model.

    Attributes:
        lengths: rows by the number of their tokens: first those of none, then by `LENGTH_EDGES`.
            Rows without a text have no such number and are not among them.
        truncated: rows whose text was truncated, by the same bins; empty: not counted.
        labels: rows by predicted label.
        other_labels: rows of labels beyond `MOST_LABELS`, or longer than `LABEL_LENGTH`.
        confidences: rows by the probability of the predicted label, `CONFIDENCE_BINS` of them;
            empty: the task has none, or not between 0 and 1 for all rows with a label.
    """

    lengths: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    other_labels: int = 0
    confidences: list[int] = field(default_factory=list)

    def add(self, other: Distributions) -> None:
        """Adds the rows of another."""
        self.lengths = _sum(self.lengths, other.lengths)
        self.truncated = _sum(self.truncated, other.truncated)
        self.confidences = _sum(self.confidences, other.confidences)
        self.other_labels += other.other_labels
        for label, rows in other.labels.items():
            self.count(label, rows)
        if sum(self.confidences) != self.other_labels + sum(self.labels.values()):
            self.confidences = []

    def count(self, label: str, rows: int) -> None:
        """Counts rows of a label."""
        is_known = label in self.labels or len(self.labels) < MOST_LABELS
        if is_known and len(label) <= LABEL_LENGTH:
            self.labels[label] = self.labels.get(label, 0) + rows
        else:
            self.other_labels += rows

    def state(self) -> dict[str, Any]:
        """Returns them as JSON values, without what is empty."""
        return {name: value for name, value in asdict(self).items() if value}


def read_distributions(state: Any) -> Distributions:
    """Returns the distributions of a state; empty ones where it makes no sense."""
    try:
        found = Distributions(**state)
        bins = 1 + len(LENGTH_EDGES)
        sizes = {"lengths": bins, "truncated": bins, "confidences": CONFIDENCE_BINS}
        are_lists = all(_are_counts(getattr(found, name), size) for name, size in sizes.items())
        counts = [*found.labels.values(), found.other_labels]
        return found if are_lists and all(map(_is_count, counts)) else Distributions()
    except (TypeError, AttributeError):
        return Distributions()


def _are_counts(values: Any, size: int) -> bool:
    return isinstance(values, list) and len(values) in (0, size) and all(map(_is_count, values))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _sum(one: Sequence[int], other: Sequence[int]) -> list[int]:
    if not one or not other:
        return [*one, *other]
    return [a + b for a, b in zip(one, other, strict=True)]


class DistributionTaker:
    """Takes the scored rows of one model as they come.

    It costs a few operations on whole columns for each call, and one in Python for each label that
    a call has: well below a microsecond a row where rows come in windows.

    Args:
        prefix: of the model's columns.
        scored: the columns that were added, with their prefixes; others are not looked at.
    """

    def __init__(self, prefix: str, scored: pa.Schema) -> None:
        def column(name: str, fits: Callable[[pa.DataType], bool]) -> str | None:
            full = prefix + name
            is_there = full in scored.names and fits(scored.field(full).type)
            return full if is_there else None

        labels = (column(name, pa.types.is_string) for name in LABEL_COLUMNS)
        self._length = column(N_TOKENS, pa.types.is_integer)
        self._truncated = column(TRUNCATED, pa.types.is_boolean)
        self._label = next((name for name in labels if name is not None), None)
        self._probability = column(PROBABILITY, pa.types.is_floating)
        self._found = Distributions()

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Adds rows with at least the model's columns."""
        self._found.add(Distributions(**self._lengths(rows), **self._labels(rows)))

    def distributions(self) -> Distributions:
        """Returns those of all rows so far."""
        return self._found

    def _lengths(self, rows: pa.Table | pa.RecordBatch) -> dict[str, Any]:
        if self._length is None:
            return {}
        lengths = rows.column(self._length)
        found = {"lengths": _by_length(lengths)}
        if self._truncated is not None:
            found["truncated"] = _by_length(lengths.filter(rows.column(self._truncated)))
        return found

    def _labels(self, rows: pa.Table | pa.RecordBatch) -> dict[str, Any]:
        if self._label is None:
            return {}
        labels = rows.column(self._label)
        counted = Distributions()
        for one in pc.value_counts(labels.drop_null()).to_pylist():
            counted.count(one["values"], one["counts"])
        found = {"labels": counted.labels, "other_labels": counted.other_labels}
        if self._probability is not None:
            of_labels = rows.column(self._probability).filter(labels.is_valid())
            found["confidences"] = _by_confidence(_numbers(of_labels))
        return found


def _by_length(lengths: pa.Array | pa.ChunkedArray) -> list[int]:
    bins = np.searchsorted(_EDGES, _numbers(lengths), side="right")
    return np.bincount(bins, minlength=1 + len(LENGTH_EDGES)).tolist()  # type: ignore[no-any-return]


def _by_confidence(probabilities: npt.NDArray[Any]) -> list[int]:
    """Returns rows by probability; those that are none, such as logits, are in no bin."""
    fits = probabilities[(probabilities >= 0) & (probabilities <= 1)]
    bins = np.minimum((fits * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    return np.bincount(bins, minlength=CONFIDENCE_BINS).tolist()  # type: ignore[no-any-return]


def _numbers(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = column.drop_null().to_numpy()
    return found


def added(parts: Iterable[Mapping[str, Distributions]]) -> dict[str, Distributions]:
    """Returns the sum over several files or chunks, by the model's name."""
    total: dict[str, Distributions] = {}
    for part in parts:
        add_each(total, part)
    return total


def add_each(total: dict[str, Distributions], part: Mapping[str, Distributions]) -> None:
    """Adds those of each model to its total."""
    for name, one in part.items():
        total.setdefault(name, Distributions()).add(one)
