"""Metrics of zero-shot classification: those of classification, by the labels of the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.metrics.classification import ClassificationEvaluation, LabelledRows
from sparkinfer.metrics.labels import matrix, predicted_ids


class ZeroShotEvaluation(ClassificationEvaluation):
    """Compares the best label and the scores of all with true labels; see `Evaluation`."""

    columns: tuple[str, ...] = ("prediction", "labels", "scores")

    def rows(
        self, batch: pa.RecordBatch, labels: Sequence[str]
    ) -> Iterator[tuple[str, LabelledRows]]:
        """Yields the rows that have a prediction, by group and in parts of bounded size."""
        label, prediction, ranked, scores = batch.filter(pc.is_valid(batch.column(1))).columns
        found = matrix(scores, len(labels))
        ids = predicted_ids(ranked.flatten(), pa.array(labels, pa.string())).reshape(found.shape)
        by_id = np.empty_like(found)
        np.put_along_axis(by_id, ids, found, axis=1)
        ends = np.arange(0, by_id.size + 1, len(labels), dtype=np.int32)
        probabilities = pa.ListArray.from_arrays(pa.array(ends), pa.array(by_id.ravel()))
        columns = [label, prediction, probabilities]
        names = ["label", *ClassificationEvaluation.columns]
        yield from super().rows(pa.RecordBatch.from_arrays(columns, names=names), labels)
