"""The share of right predictions, read from the published output."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from sparkinfer.config import ScoringConfig
from sparkinfer.storage import file_system


def label_accuracy(config: ScoringConfig, labels: Sequence[str]) -> float | None:
    """Returns the share of scored rows with a label whose prediction is that label.

    A label is a label's id (a number, or its digits) or its name. Cost: one pass over two columns
    of the output, on the driver. None if there is no label column or no labelled row.
    """
    if config.label_col is None or not labels:
        return None
    fs, name = file_system(str(config.output))
    dataset = pads.dataset(name, filesystem=fs, format="parquet")
    prediction = config.output_prefix + "prediction"
    right = total = 0
    for batch in dataset.to_batches(columns=[config.label_col, prediction]):
        truth = _label_names(batch.column(0), labels)
        equal = pc.equal(truth, batch.column(1))
        total += len(equal) - equal.null_count
        right += pc.sum(equal).as_py() or 0
    return right / total if total else None


def _label_names(column: pa.Array, labels: Sequence[str]) -> pa.Array:
    """Returns the labels by name; a number without a name stays what it is."""
    if not pa.types.is_string(column.type):
        whole = pc.cast(column, pa.int64(), safe=False)
        column = pc.cast(whole, pa.string())
    ids = pa.array([str(i) for i in range(len(labels))])
    known = pc.index_in(column, ids)
    return pc.coalesce(pa.array(labels, pa.string()).take(known), column)
