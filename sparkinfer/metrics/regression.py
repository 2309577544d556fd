"""Metrics of a single number: its errors, and how far it goes with the true one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.metrics.base import Labels, Metric, Sums
from sparkinfer.metrics.classification import RowCounts
from sparkinfer.metrics.labels import PLAIN_LABELS, is_plain_label, label_text, matrix
from sparkinfer.metrics.readable import ReadableLabels

GROUP = "numbers"
"""The one group of rows."""

_BOOLEANS = {"false": 0.0, "true": 1.0}


@dataclass(frozen=True)
class NumberRows:
    """Rows that have a number and a true one, in the order of the file.

    Attributes:
        labels: true numbers, float64 (rows,).
        predictions: the model's, float64 (rows,).
        unknown_labels: further rows with the model's number and a label that is none.
    """

    labels: npt.NDArray[np.float64]
    predictions: npt.NDArray[np.float64]
    unknown_labels: int = 0


class Errors(Sums):
    """Mean absolute error, and the root of the mean squared error."""

    name = "errors"

    def __init__(self) -> None:
        super().__init__(
            rows=np.zeros((), np.int64),
            absolute=np.zeros((), np.float64),
            squared=np.zeros((), np.float64),
        )

    def update(self, rows: NumberRows) -> None:
        """Adds the rows' errors."""
        errors = np.abs(rows.predictions - rows.labels)
        self._sums["rows"] += len(errors)
        self._sums["absolute"] += errors.sum()
        self._sums["squared"] += np.square(errors).sum()

    def compute(self) -> dict[str, float]:
        """Returns both."""
        rows = int(self._sums["rows"])
        if not rows:
            return {}
        return {
            "mae": float(self._sums["absolute"] / rows),
            "rmse": float(np.sqrt(self._sums["squared"] / rows)),
        }


class Pearson:
    """Pearson's correlation.

    Its state holds means and sums of products of differences from them: of sums of the numbers
    themselves, little would be left where they are large and lie close together.

    Source: Chan, Golub and LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances.
    """

    name = "pearson"

    def __init__(self) -> None:
        self._rows = 0
        self._means = np.zeros(2)
        self._products = np.zeros((2, 2))

    def update(self, rows: NumberRows) -> None:
        """Adds rows."""
        if len(rows.labels):
            numbers = np.stack([rows.labels, rows.predictions])
            # From the first, so that numbers that are all the same have no spread at all.
            apart = numbers - numbers[:, :1]
            shift = apart.mean(axis=1)
            apart = apart - shift[:, None]
            self._add(len(rows.labels), numbers[:, 0] + shift, apart @ apart.T)

    def state(self) -> dict[str, Any]:
        """Returns the number of rows, the means and the products."""
        return {
            "rows": self._rows,
            "means": self._means.tolist(),
            "products": self._products.tolist(),
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the state of other rows."""
        self._add(int(state["rows"]), np.array(state["means"]), np.array(state["products"]))

    def _add(
        self, rows: int, means: npt.NDArray[np.float64], products: npt.NDArray[np.float64]
    ) -> None:
        total = self._rows + rows
        if not self._rows:  # the others' as they are: zero and they would be rounded
            self._rows, self._means, self._products = rows, means, products
            return
        shift = means - self._means
        spread = np.outer(shift, shift) * (self._rows * rows / total)
        self._rows, self._means = total, self._means + shift * (rows / total)
        self._products = self._products + products + spread

    def compute(self) -> dict[str, float]:
        """Returns the correlation; nothing if either number is the same in all rows."""
        (own, both), (_, other) = self._products
        if not own > 0 or not other > 0:
            return {}
        return {"pearson": float(np.clip(both / np.sqrt(own) / np.sqrt(other), -1, 1))}


def read_numbers(column: pa.Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Returns labels as numbers, NaN where they are none, and whether there is a label at all.

    A column of a CSV file is text: no text, and "nan", are no label.
    """
    encoded = label_text(column).dictionary_encode()
    values = [str(value).strip() for value in encoded.dictionary.to_pylist()]
    numbers = np.array([*map(_number, values), np.nan])
    is_there = np.array([*(value.casefold() not in ("", "nan") for value in values), False])
    places = pc.fill_null(encoded.indices, len(values)).to_numpy()
    return numbers[places], is_there[places]


def _number(text: str) -> float:
    folded = text.casefold()
    try:
        return _BOOLEANS[folded] if folded in _BOOLEANS else float(folded.replace("_", "?"))
    except ValueError:
        return float("nan")


def _look(column: pa.Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    numbers, is_there = read_numbers(column)
    return is_there, np.isfinite(numbers)


class RegressionEvaluation:
    """Compares a model's only number with the true one; see `Evaluation`."""

    columns: tuple[str, ...] = ("prediction", "probabilities")
    names: tuple[str, ...] = (RowCounts.name, Errors.name, Pearson.name)
    label_types = PLAIN_LABELS

    def reads(self, kind: pa.DataType) -> bool:
        """Returns whether numbers may be of a type."""
        return is_plain_label(kind)

    def metrics(self, labels: Sequence[str]) -> list[Metric]:
        """Returns new metrics."""
        return [RowCounts(), Errors(), Pearson()]

    def labels(self, labels: Sequence[str]) -> Labels:
        """Returns a new account of true labels."""
        return ReadableLabels(GROUP, "a number, which is what this model gives", _look)

    def rows(self, batch: pa.RecordBatch, labels: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yields the rows that have a number."""
        label, _, probabilities = batch.filter(pc.is_valid(batch.column(2))).columns
        true, is_there = read_numbers(label)
        is_known = is_there & np.isfinite(true)
        found = matrix(probabilities.filter(pa.array(is_known)), 1)[:, 0].astype(np.float64)
        unknown = int(np.count_nonzero(is_there & ~is_known))
        yield GROUP, NumberRows(true[is_known], found, unknown)
