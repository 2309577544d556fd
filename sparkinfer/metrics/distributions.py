"""How the lengths, labels and confidences of scored rows are distributed; adds up over workers."""

from __future__ import annotations

from dataclasses import dataclass, field

LENGTH_EDGES = tuple(sorted({round(2 ** (step / 2)) for step in range(41)}))
"""Lower ends of the bins of lengths in tokens: 1, 2, 3, 4, 6, 8, 11, 16, …, two for each doubling."""

CONFIDENCE_BINS = 50
"""Bins of equal width between 0 and 1."""

MOST_LABELS = 1_000
"""Labels that are counted by name."""


@dataclass
class Distributions:
    """Of the rows of one model.

    Attributes:
        lengths: rows by the number of their tokens: first those of none, then by `LENGTH_EDGES`.
        truncated: rows whose text was truncated, by the same bins; empty: not counted.
        labels: rows by predicted label.
        other_labels: rows of labels beyond `MOST_LABELS`.
        confidences: rows by the probability of the predicted label, `CONFIDENCE_BINS` of them;
            empty: the task has none.
    """

    lengths: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    other_labels: int = 0
    confidences: list[int] = field(default_factory=list)
