"""How predictions compare with true labels: values, curves and confusion."""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sparkinfer.exceptions import SparkInferError
from sparkinfer.metrics.base import Metric
from sparkinfer.metrics.classification import AucRoc, Calibration, Confusion
from sparkinfer.report import charts
from sparkinfer.report.facts import ModelFacts
from sparkinfer.report.own_metrics import measure_of
from sparkinfer.report.parts import (
    Cell,
    Matrix,
    Number,
    Part,
    Picture,
    Table,
    Unknown,
    in_thousands,
    percent,
    plural,
    table_of,
)

MOST_IN_MATRIX = 12
"""Labels of a confusion matrix that is shown whole, and of the part of a larger one."""

MOST_PAIRS = 15
MOST_LISTED = 100
LEAST_STEP = 0.004
"""Of a ROC curve, along both axes together; finer ones cannot be seen."""

MEANINGS = {
    "accuracy": "share of rows whose predicted label is the true one",
    "f1_macro": "mean over the labels of each one's F1",
    "log_loss": "mean of -log of the true label's probability",
    "calibration_error": "expected calibration error, 15 bins",
    "auc_roc": "area under the ROC curve",
    "auc_roc_bound": "by how much the area may be off, at most",
    "labelled_rows": "rows that these figures are about",
    "unknown_labels": "further rows, whose label is none of the model's",
    "mae": "mean absolute error",
    "rmse": "root of the mean squared error",
    "pearson": "Pearson's correlation",
    "precision": "share of found entities that are right",
    "recall": "share of true entities that are found",
    "f1": "harmonic mean of precision and recall",
}

COUNTS = ("labelled_rows", "unknown_labels")


def quality_parts(name: str, model: ModelFacts) -> Iterator[Part]:
    """Yields the metrics of a model and what lies behind them; nothing if no labels were named."""
    if model.metrics_problem is not None:
        yield Unknown("Metrics", f"There are none: {model.metrics_problem}.")
        return
    if not model.metrics:
        if model.settings.get("label_col") is not None:
            yield Unknown("Metrics", "There are none: no row has both a label and a prediction.")
        return
    yield _metrics(model)
    counted = {type(metric): metric for metric in _counted(model)}
    if isinstance(metric := counted.get(Calibration), Calibration):
        yield from _calibration(name, metric)
    if isinstance(metric := counted.get(AucRoc), AucRoc):
        yield from _roc(name, model.labels, metric)
    if isinstance(metric := counted.get(Confusion), Confusion):
        yield from _confusion(model.labels, metric.matrix)


def _metrics(model: ModelFacts) -> Table:
    rows = [
        (metric, Number(_value(metric, value)), MEANINGS.get(metric, ""))
        for metric, value in model.metrics.items()
    ]
    return Table("Metrics", ("metric", "value", "what it is"), rows)


def _value(metric: str, value: float) -> str:
    return in_thousands(value) if metric in COUNTS else f"{value:.4f}"


def _counted(model: ModelFacts) -> list[Metric]:
    """Returns the package's own metrics with what was added up; none that cannot be read."""
    if not model.states:
        return []
    adding = measure_of(model.settings, model.labels).adding()
    try:
        adding.add(model.states)
        return adding.counted()
    except (
        *(SparkInferError, ValueError, KeyError, TypeError, AttributeError),
        *(zlib.error, binascii.Error),
    ):
        return []


def _calibration(name: str, metric: Calibration) -> Iterator[Part]:
    points = metric.curve()
    if not points:
        return
    total = sum(rows for _, _, rows in points)
    drawn = [(confidence, right, rows / total) for confidence, right, rows in points]
    cells = [
        (f"{confidence:.3f}", Number(f"{right:.3f}"), Number(in_thousands(rows)))
        for confidence, right, rows in points
    ]
    error = metric.compute()["calibration_error"]
    gap = sum(rows * (confidence - right) for confidence, right, rows in points) / total
    lean = "surer" if gap > 0 else "less sure"
    says = (
        "Dots below the diagonal: surer than right. On average the model is "
        f"{f'{lean} than right by {abs(gap):.3f}' if abs(gap) >= 0.0005 else 'as sure as right'}; "
        f"the expected calibration error is {error:.3f}. The larger a dot, the more rows."
    )
    numbers = table_of(("mean confidence", "share right", "rows"), cells)
    yield Picture("Calibration", says, charts.calibration(f"calibration{name}", drawn), numbers)


def _roc(name: str, labels: Sequence[str], metric: AucRoc) -> Iterator[Part]:
    curves = metric.curves()
    if not curves:
        return
    chosen = sorted(curves, key=lambda one: -one.positives)[: len(charts.SERIES)]
    thinned = [_thinned(one.false, one.true) for one in chosen]
    svg = charts.roc(f"roc{name}", thinned)
    shown = [labels[one.label] if one.label < len(labels) else str(one.label) for one in chosen]
    says = f"Area {metric.compute()['auc_roc']:.4f}"
    if len(curves) > 1:
        says += ", the mean of each label against the rest"
    says += (
        f"; drawn are the {len(chosen)} largest of {len(curves):,}."
        if len(chosen) < len(curves)
        else "."
    )
    cells: list[Sequence[Cell]] = [
        (label, Number(f"{false:.4f}"), Number(f"{true:.4f}"))
        for label, (falses, trues) in zip(shown, thinned, strict=True)
        for false, true in _listed(falses, trues)
    ]
    numbers = table_of(("label", "false positive rate", "true positive rate"), cells)
    colours = [f"series-{number}" for number in range(1, 1 + len(shown))]
    yield Picture("ROC", says, svg, numbers, legend=[*zip(shown, colours, strict=True)])


def _thinned(
    false: npt.NDArray[np.float64], true: npt.NDArray[np.float64]
) -> tuple[list[float], list[float]]:
    """Returns the points of a curve that can be told from one another, the last among them."""
    chosen = [0]
    for at in range(1, len(false)):
        moved = false[at] - false[chosen[-1]] + true[at] - true[chosen[-1]]
        if moved >= LEAST_STEP or at == len(false) - 1:
            chosen.append(at)
    return false[chosen].tolist(), true[chosen].tolist()


def _listed(false: Sequence[float], true: Sequence[float]) -> list[tuple[float, float]]:
    points = list(zip(false, true, strict=True))
    step = max(1, len(points) // 20)
    return [*points[:-1:step], points[-1]]


def _confusion(labels: Sequence[str], matrix: npt.NDArray[np.int64]) -> Iterator[Part]:
    if not matrix.sum():
        return
    if len(labels) <= MOST_IN_MATRIX:
        yield _matrix("Confusion", labels, matrix)
    else:
        yield from _large_confusion(labels, matrix)
    yield _by_label(labels, matrix)


def _matrix(
    title: str, labels: Sequence[str], matrix: npt.NDArray[np.int64], says: str = ""
) -> Part:
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    says = f"Rows by true label (down) and predicted label (across).{says}"
    counts = [[in_thousands(count) for count in row] for row in matrix]
    return Matrix(title, says, labels, counts, shares.tolist())


def _large_confusion(labels: Sequence[str], matrix: npt.NDArray[np.int64]) -> Iterator[Part]:
    """Yields the largest labels, all others as one, and the pairs that are confused most."""
    sizes = matrix.sum(axis=1) + matrix.sum(axis=0)
    largest = np.argsort(-sizes, kind="stable")[: MOST_IN_MATRIX - 1]
    place = np.full(len(labels), len(largest))
    place[largest] = np.arange(len(largest))
    folded = np.zeros((len(largest) + 1,) * 2, np.int64)
    np.add.at(folded, (place[:, None], place[None, :]), matrix)
    names = [*(labels[at] for at in largest), f"{len(labels) - len(largest):,} others"]
    says = (
        f" The {len(largest)} most frequent of {len(labels):,} labels; the last row and column "
        "hold all others, right or wrong."
    )
    yield _matrix("Confusion, the largest labels", names, folded, says)
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    if wrong.any():
        yield _pairs(labels, wrong, matrix.sum(axis=1))
    else:
        yield Unknown("Most confused", "No label was taken for another.")


def _pairs(
    labels: Sequence[str], wrong: npt.NDArray[np.int64], totals: npt.NDArray[np.int64]
) -> Table:
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    most = int(wrong.max())
    rows: list[Sequence[Cell]] = []
    for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True):
        count = int(wrong[true, predicted])
        if count:
            share = Number(percent(count / int(totals[true])))
            rows.append(
                (labels[true], labels[predicted], Number(f"{count:,}", count / most), share)
            )
    head = ("true label", "taken for", "rows", "of the true label's")
    return Table("Most confused", head, rows, columns=2)


def _by_label(labels: Sequence[str], matrix: npt.NDArray[np.int64]) -> Table:
    right, true, found = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    order = [int(at) for at in np.argsort(-(true + found), kind="stable") if true[at] + found[at]]
    rows: list[Sequence[Cell]] = [
        (
            labels[at],
            Number(in_thousands(true[at])),
            Number(in_thousands(found[at])),
            _share(right[at], found[at]),
            _share(right[at], true[at]),
            _share(2 * right[at], true[at] + found[at]),
        )
        for at in order[:MOST_LISTED]
    ]
    head = ("label", "true", "predicted", "precision", "recall", "F1")
    says = "" if len(order) <= MOST_LISTED else f"The {MOST_LISTED} largest of {len(order):,}."
    is_long = len(rows) > MOST_IN_MATRIX
    title = f"By label ({plural(len(rows), 'label')})" if is_long else "By label"
    return Table(title, head, rows, says, columns=2, is_closed=is_long)


def _share(part: int, whole: int) -> Number:
    return Number("–") if not whole else Number(f"{part / whole:.3f}", float(part / whole))
