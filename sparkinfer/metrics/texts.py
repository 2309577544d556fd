"""Metrics of text classification: of a label out of several, or of a single number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from sparkinfer.metrics.base import Evaluation, Labels, Metric
from sparkinfer.metrics.classification import ClassificationEvaluation
from sparkinfer.metrics.labels import PLAIN_LABELS, is_plain_label
from sparkinfer.metrics.regression import RegressionEvaluation


class TextEvaluation:
    """Compares labels, or the number of a model with one output; see `Evaluation`.

    A regression with several outputs has the row counts alone: which of them a label is about is
    not known.
    """

    columns: tuple[str, ...] = ClassificationEvaluation.columns
    names: tuple[str, ...] = tuple(
        dict.fromkeys((*ClassificationEvaluation.names, *RegressionEvaluation.names))
    )
    label_types = PLAIN_LABELS

    def reads(self, kind: pa.DataType) -> bool:
        """Returns whether labels may be of a type."""
        return is_plain_label(kind)

    def metrics(self, labels: Sequence[str]) -> list[Metric]:
        """Returns new metrics for a model with these labels."""
        return _of(labels).metrics(labels)

    def labels(self, labels: Sequence[str]) -> Labels:
        """Returns a new account of true labels, for a model with these labels."""
        return _of(labels).labels(labels)

    def rows(self, batch: pa.RecordBatch, labels: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yields the rows that have a result, by group."""
        return _of(labels).rows(batch, labels)


def _of(labels: Sequence[str]) -> Evaluation:
    return RegressionEvaluation() if len(labels) == 1 else ClassificationEvaluation()
