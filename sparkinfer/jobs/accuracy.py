"""The share of right predictions, read from the published output."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from sparkinfer.config import ScoringConfig
from sparkinfer.storage import file_system


def label_accuracy(
    config: ScoringConfig, labels: Sequence[str], files: Sequence[str]
) -> float | None:
    """Returns the share of scored rows with a label whose prediction is that label.

    A label is a label's id (a number, or its digits) or its name. Cost: one pass over two columns
    of the scored files, on the driver. None if there is no label column or no labelled row.
    """
    if config.label_col is None or not labels:
        return None
    columns = [config.label_col, config.output_prefix + "prediction"]
    right = total = 0
    for path in files:
        fs, name = file_system(path)
        for batch in pads.dataset(name, filesystem=fs, format="parquet").to_batches(
            columns=columns
        ):
            equal = pc.equal(_label_names(batch.column(0), labels), batch.column(1))
            total += len(equal) - equal.null_count
            right += pc.sum(equal).as_py() or 0
    return right / total if total else None


def _label_names(column: pa.Array, labels: Sequence[str]) -> pa.Array:
    """Returns the labels by name; what names none stays what it is, NaN is no label."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
        is_whole = pc.equal(pc.floor(column), column)
        whole = pc.cast(pc.cast(pc.floor(column), pa.int64()), pa.string())
        column = pc.if_else(is_whole, whole, pc.cast(column, pa.string()))
    column = pc.cast(column, pa.string())
    ids = pa.array([str(i) for i in range(len(labels))])
    return pc.coalesce(pa.array(labels, pa.string()).take(pc.index_in(column, ids)), column)
