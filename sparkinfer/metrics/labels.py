"""Labels and predictions as label ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.exceptions import JobError


def label_text(column: pa.Array) -> pa.Array:
    """Returns labels as text, whole numbers as digits; null where there is no label, as for NaN."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        is_whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53))
        digits = pc.cast(pc.cast(pc.if_else(is_whole, column, None), pa.int64()), pa.string())
        return pc.coalesce(digits, pc.cast(column, pa.string()))
    return pc.cast(column, pa.string())


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def label_ids(labels: pa.Array, names: pa.Array, of_type: pa.DataType) -> pa.Array:
    """Returns the id that each label gives as digits or by name, else null.

    Where labels may be either, such as a rating "1" of a model with names "1" to "5", those in a
    text column are names and those in a numeric column are ids. A name that several ids share
    stands for the first: predictions do not distinguish them.
    """
    digits = pa.array([str(i) for i in range(len(names))], pa.string())
    first = pc.index_in(names, value_set=names)
    by_digits = first.take(pc.index_in(labels, value_set=digits))
    by_name = pc.index_in(labels, value_set=names)
    if _holds_text(of_type):
        return pc.coalesce(by_name, by_digits)
    return pc.coalesce(by_digits, by_name)


def predicted_ids(column: pa.Array, names: pa.Array) -> npt.NDArray[np.int64]:
    """Returns the label ids of predictions, which are stored by name.

    Raises:
        JobError: a prediction is not among the names.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    ids = pc.index_in(pc.cast(column, pa.string()), value_set=names)
    if ids.null_count:
        strange = column.filter(pc.is_null(ids))[0].as_py()
        raise JobError(
            f"prediction {strange!r} is not one of the model's {len(names)} labels; the file was "
            "scored by another model, so score it again"
        )
    return ids.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def matrix(column: pa.Array, width: int) -> npt.NDArray[np.float32]:
    """Returns lists of the same length as float32 (rows, width).

    Raises:
        JobError: a list has another length.
    """
    wrong = pc.fill_null(pc.not_equal(pc.list_value_length(column), width), True)
    if pc.any(wrong).as_py():
        strange = column.filter(wrong)[0].as_py()
        raise JobError(
            f"probabilities {strange}: expected {width} numbers, one per label; the file was "
            "scored by another model, so score it again"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(-1, width)
