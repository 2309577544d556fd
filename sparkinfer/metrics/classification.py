"""Metrics of classification: one label out of several, with the probability of each.

Values that are undefined are left out, never NaN:

* `log_loss`, `calibration_error` and `auc_roc` need distinct label names (a prediction is stored by
  name) and rows that are distributions: numbers of at least 0 that sum to 1. A single row that is
  not, as from a sigmoid per label or a regression, leaves them out for the whole run;
* `auc_roc` needs rows with and without each label, like scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.metrics.base import Labels, Metric, Sums
from sparkinfer.metrics.labels import (
    PLAIN_LABELS,
    UNKNOWN,
    LabelsSeen,
    is_plain_label,
    label_names,
    matrix,
    predicted_ids,
)

MAX_BATCH_ROWS = 2**16
MAX_BATCH_NUMBERS = 2**22
"""Maximum probabilities read at a time, 16 MiB; arrays made from them take a few times that."""

SUM_TOLERANCE = 3.5e-4
"""How far a row of probabilities may sum from 1. Source: scikit-learn, root of float32's eps."""

CALIBRATION_BINS = 15
"""Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 5."""

OCTAVES_BELOW_HALF = 40
OCTAVES_ABOVE_HALF = 24
"""The AUC's grid: halvings of p from 1/2 to 2**-40, and of 1 - p down to float32's resolution."""


@dataclass(frozen=True)
class LabelledRows:
    """Rows that have a prediction and a label of the model, in the order of the file.

    Attributes:
        labels: true label ids, int64 (rows,).
        predictions: predicted label ids, int64 (rows,).
        probabilities: float32 (rows, num_labels).
        unknown_labels: further rows with a prediction and a label that the model does not have.
    """

    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    unknown_labels: int = 0


class RowCounts(Sums):
    """How many rows the other metrics cover."""

    name = "rows"

    def __init__(self) -> None:
        super().__init__(labelled=_zero_counts(), unknown=_zero_counts())

    def update(self, rows: LabelledRows) -> None:
        """Counts rows."""
        self._sums["labelled"] += len(rows.labels)
        self._sums["unknown"] += rows.unknown_labels

    def compute(self) -> dict[str, float]:
        """Returns both counts."""
        return {
            "labelled_rows": float(self._sums["labelled"]),
            "unknown_labels": float(self._sums["unknown"]),
        }


class Confusion(Sums):
    """Accuracy and macro F1, from rows by true and predicted label."""

    name = "confusion"

    def __init__(self, num_labels: int) -> None:
        super().__init__(matrix=_zero_counts(num_labels, num_labels))

    def update(self, rows: LabelledRows) -> None:
        """Counts rows by label and prediction."""
        np.add.at(self._sums["matrix"], (rows.labels, rows.predictions), 1)

    @property
    def matrix(self) -> npt.NDArray[np.int64]:
        """Rows by true label and by predicted label, int64 (num_labels, num_labels)."""
        return self._sums["matrix"]

    def compute(self) -> dict[str, float]:
        """Returns both values.

        Macro F1 is the mean over the labels that occur among true labels or predictions. None of
        them divides by zero, so scikit-learn's `zero_division` does not matter.

        Source: `f1_score(average="macro")` of scikit-learn.
        """
        matrix = self._sums["matrix"]
        total = matrix.sum()
        if not total:
            return {}
        right = np.diagonal(matrix)
        occurrences = matrix.sum(axis=0) + matrix.sum(axis=1)
        there = occurrences > 0
        f1 = 2 * right[there] / occurrences[there]
        return {"accuracy": float(right.sum() / total), "f1_macro": float(f1.mean())}


class LogLoss(Sums):
    """Mean of -log of the true label's probability (natural logarithm)."""

    name = "log_loss"

    def __init__(self) -> None:
        super().__init__(
            loss=np.zeros((), np.float64), rows=_zero_counts(), unusable=_zero_counts()
        )

    def update(self, rows: LabelledRows) -> None:
        """Adds the rows' losses.

        Source: `log_loss` of scikit-learn on float64: probabilities are clipped by its eps and not
        normalised to sum to 1 (releases before 1.5 did so; float32 rows then differ by 1e-7).
        """
        usable = _is_distribution(rows.probabilities)
        chosen = rows.probabilities[np.arange(len(usable)), rows.labels][usable]
        eps = np.finfo(np.float64).eps
        self._sums["loss"] -= np.log(np.clip(chosen.astype(np.float64), eps, 1 - eps)).sum()
        self._sums["rows"] += len(chosen)
        self._sums["unusable"] += len(usable) - len(chosen)

    def compute(self) -> dict[str, float]:
        """Returns the mean."""
        if self._sums["unusable"] or not self._sums["rows"]:
            return {}
        return {"log_loss": float(self._sums["loss"] / self._sums["rows"])}


class Calibration(Sums):
    """Expected calibration error of the highest probability, over bins (lo, hi] of equal width."""

    name = "calibration"

    def __init__(self) -> None:
        super().__init__(
            rows=_zero_counts(CALIBRATION_BINS),
            right=_zero_counts(CALIBRATION_BINS),
            confidence=np.zeros(CALIBRATION_BINS, np.float64),
            unusable=_zero_counts(),
        )

    def update(self, rows: LabelledRows) -> None:
        """Adds rows to the bins of their highest probability."""
        usable = _is_distribution(rows.probabilities)
        top = rows.probabilities[usable].max(axis=1).astype(np.float64)
        right = (rows.labels == rows.predictions)[usable]
        # The product is exact: float32 has 24 bits, the factor four and float64 53.
        bins = np.clip(np.ceil(top * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1).astype(int)
        self._sums["rows"] += np.bincount(bins, minlength=CALIBRATION_BINS)
        self._sums["right"] += np.bincount(bins[right], minlength=CALIBRATION_BINS)
        self._sums["confidence"] += np.bincount(bins, weights=top, minlength=CALIBRATION_BINS)
        self._sums["unusable"] += len(usable) - len(top)

    def compute(self) -> dict[str, float]:
        """Returns the mean over rows of their bin's |share correct - mean confidence|."""
        total = self._sums["rows"].sum()
        if self._sums["unusable"] or not total:
            return {}
        gaps = np.abs(self._sums["right"] - self._sums["confidence"])
        return {"calibration_error": float(gaps.sum() / total)}

    def curve(self) -> list[tuple[float, float, int]]:
        """Returns mean confidence, share that is right and rows, of each bin that has any.

        Empty where `compute` returns nothing.
        """
        if self._sums["unusable"]:
            return []
        sums = (self._sums[name].tolist() for name in ("confidence", "right", "rows"))
        return [
            (confidence / rows, right / rows, rows)
            for confidence, right, rows in zip(*sums, strict=True)
            if rows
        ]


@dataclass(frozen=True)
class RocCurve:
    """A label against the rest.

    Attributes:
        label: its id.
        positives: rows with the label.
        false: share of the rest above each threshold, which falls; float64 (thresholds,).
        true: share of the rows with the label, likewise.
    """

    label: int
    positives: int
    false: npt.NDArray[np.float64]
    true: npt.NDArray[np.float64]


class AucRoc(Sums):
    """Area under the ROC curve: of label 1 of two, else the mean of each label against the rest.

    Rows are counted on a fixed grid of probabilities, and those in the same bin as tied. Each bin
    is an equal part of an octave, a halving of p below 1/2 and of 1 - p above; that is nearly
    uniform in the logit, exact in float32 and the same on every machine. A curve has 64 octaves of
    64 parts with up to four curves and fewer parts with more, so that a state stays small.

    Source: the area is the chance that a row with the label has a higher probability than one
    without it, ties counting half (Mann-Whitney); `roc_auc_score(multi_class="ovr")` of
    scikit-learn.
    """

    name = "auc_roc"

    def __init__(self, num_labels: int) -> None:
        self._ids = np.arange(num_labels) if num_labels > 2 else np.array([1])
        self._parts_log2 = min(6, max(0, 8 - (len(self._ids) - 1).bit_length()))
        num_bins = (OCTAVES_BELOW_HALF + OCTAVES_ABOVE_HALF) << self._parts_log2
        super().__init__(
            rows=_zero_counts(2, len(self._ids), num_bins), unusable=_zero_counts()
        )  # rows: first those with the label, then the rest

    def update(self, rows: LabelledRows) -> None:
        """Counts rows by bin, once per curve."""
        usable = _is_distribution(rows.probabilities)
        counts = self._sums["rows"]
        _, num_curves, num_bins = counts.shape
        bins = _bins(rows.probabilities[usable][:, self._ids], self._parts_log2)
        is_other = rows.labels[usable, None] != self._ids
        cells = (is_other * num_curves + np.arange(num_curves)) * num_bins + bins
        counts += np.bincount(cells.ravel(), minlength=counts.size).reshape(counts.shape)
        self._sums["unusable"] += np.count_nonzero(~usable)

    def compute(self) -> dict[str, float]:
        """Returns the area, and a bound on its difference from the area without bins."""
        positives, negatives = self._sums["rows"].astype(np.float64)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        if self._sums["unusable"] or not pairs.all():
            return {}
        tied = positives * negatives
        won = positives * (negatives.cumsum(axis=1) - negatives) + tied / 2
        return {
            "auc_roc": float((won.sum(axis=1) / pairs).mean()),
            "auc_roc_bound": float((tied.sum(axis=1) / 2 / pairs).mean()),
        }

    def curves(self) -> list[RocCurve]:
        """Returns the curves, from (0, 0) to (1, 1); none where `compute` returns nothing."""
        totals = self._sums["rows"].sum(axis=2)
        if self._sums["unusable"] or not totals.all():
            return []
        above = self._sums["rows"][:, :, ::-1].cumsum(axis=2) / totals[:, :, None]
        true, false = np.pad(above, ((0, 0), (0, 0), (1, 0)))
        return [
            RocCurve(int(label), int(totals[0, place]), false[place], true[place])
            for place, label in enumerate(self._ids)
        ]


def _zero_counts(*shape: int) -> npt.NDArray[np.int64]:
    return np.zeros(shape, np.int64)


def _is_distribution(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Returns which rows are non-negative and sum to 1, bool (rows,)."""
    total = probabilities.sum(axis=1, dtype=np.float64)
    near_one = np.abs(total - 1) <= SUM_TOLERANCE
    result: npt.NDArray[np.bool_] = near_one & (probabilities >= 0).all(axis=1)
    return result


def _bins(p: npt.NDArray[np.float32], parts_log2: int) -> npt.NDArray[np.int64]:
    """Returns the bin of each probability, int64, increasing with it.

    The bits of a positive float32, read as an integer, increase with it: 8 of exponent, then 23 of
    mantissa, of which the first `parts_log2` cut each octave into equal parts.
    """
    p = np.clip(p, 0, 1)
    to_nearer_end = np.minimum(p, 1 - p)  # exact, since 1 - p is exact for p from 1/2
    shift = 23 - parts_log2
    half = int(np.float32(0.5).view(np.int32)) >> shift
    depth = half - (to_nearer_end.view(np.int32) >> shift).astype(np.int64)
    middle = OCTAVES_BELOW_HALF << parts_log2
    last = ((OCTAVES_BELOW_HALF + OCTAVES_ABOVE_HALF) << parts_log2) - 1
    return np.clip(np.where(p < 0.5, middle - depth, middle + depth), 0, last)


class ClassificationEvaluation:
    """Compares predictions and probabilities with true labels; see `Evaluation`."""

    columns: tuple[str, ...] = ("prediction", "probabilities")
    names: tuple[str, ...] = tuple(
        kind.name for kind in (RowCounts, Confusion, LogLoss, Calibration, AucRoc)
    )
    label_types = PLAIN_LABELS

    def reads(self, kind: pa.DataType) -> bool:
        """Returns whether labels may be of a type."""
        return is_plain_label(kind)

    def metrics(self, labels: Sequence[str]) -> list[Metric]:
        """Returns new metrics for a model with these labels."""
        num_labels = len(labels)
        metrics: list[Metric] = [RowCounts()]
        if num_labels > 1:
            metrics.append(Confusion(num_labels))
        if 1 < num_labels == len(set(labels)):
            metrics += [LogLoss(), Calibration(), AucRoc(num_labels)]
        return metrics

    def labels(self, labels: Sequence[str]) -> Labels:
        """Returns a new account of true labels, for a model with these labels."""
        return LabelsSeen(labels)

    def rows(
        self, batch: pa.RecordBatch, labels: Sequence[str]
    ) -> Iterator[tuple[str, LabelledRows]]:
        """Yields the rows that have a prediction, by group and in parts of bounded size."""
        max_rows = min(MAX_BATCH_ROWS, max(1, MAX_BATCH_NUMBERS // len(labels)))
        for start in range(0, batch.num_rows, max_rows):
            yield from _labelled_rows(batch.slice(start, max_rows), tuple(labels))


def _labelled_rows(
    batch: pa.RecordBatch, labels: tuple[str, ...]
) -> Iterator[tuple[str, LabelledRows]]:
    label, prediction, probabilities = batch.filter(pc.is_valid(batch.column(1))).columns
    names = pa.array(labels, pa.string())
    for group, rows, ids in label_names(labels).read(label).groups():
        known = rows & (ids != UNKNOWN)
        chosen = pa.array(known)
        yield (
            group,
            LabelledRows(
                labels=ids[known],
                predictions=predicted_ids(prediction.filter(chosen), names),
                probabilities=matrix(probabilities.filter(chosen), len(names)),
                unknown_labels=int(np.count_nonzero(rows & ~known)),
            ),
        )
