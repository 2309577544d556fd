"""Gives a column read from a file the type that it has in the run, without loss of a value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.files.types import fields_of, is_list


def conform(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns the column with a type that `common_type` gave for it.

    What is finer than a microsecond is cut off timestamps (`cut_nanoseconds` counts how many that
    changes). Cost: none for a column that has the type already.

    Raises:
        ArrowException: a value has no equal in the type.
    """
    if column.type == kind:
        return column
    if isinstance(column, pa.ExtensionArray):
        return conform(column.storage, kind)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), kind)
    if pa.types.is_dictionary(column.type):
        return conform(column.dictionary_decode(), kind)
    if pa.types.is_timestamp(kind) and pa.types.is_timestamp(column.type):
        return _in_microseconds(column, kind)
    if pa.types.is_struct(kind) and pa.types.is_struct(column.type):
        return _struct(column, kind)
    if pa.types.is_map(kind) and pa.types.is_map(column.type):
        keys, items = conform(column.keys, kind.key_type), conform(column.items, kind.item_type)
        return pa.MapArray.from_arrays(_offsets(column.offsets, column), keys, items)
    if pa.types.is_list(kind) and is_list(column.type):
        return _list(column, kind)
    if pa.types.is_float16(column.type):
        return pc.cast(_in_float32(column), kind)
    return pc.cast(column, kind)


def cut_nanoseconds(column: pa.Array) -> int:
    """Returns the timestamps in a column that microseconds cannot hold."""
    if not pa.types.is_timestamp(column.type) or column.type.unit != "ns":
        return 0
    values = column.drop_null().cast(pa.int64()).to_numpy()
    return int(np.count_nonzero(values % 1000))


def _in_microseconds(column: pa.Array, kind: pa.TimestampType) -> pa.Array:
    if column.type.unit == "ns":
        # A cast would cut towards 1970, and so change the digits that are kept of earlier times.
        column = pc.floor_temporal(column.cast(pa.timestamp("ns", kind.tz)), unit="microsecond")
    return pc.cast(column, kind)


def _in_float32(column: pa.Array) -> pa.Array:
    """Returns numbers of half precision as they are; pyarrow before 16 has no cast for them."""
    values = column.to_numpy(zero_copy_only=False).astype(np.float32)
    return pa.array(values, mask=column.is_null().to_numpy(zero_copy_only=False))


def _struct(column: pa.StructArray, kind: pa.StructType) -> pa.Array:
    present = {field.name.lower(): index for index, field in enumerate(fields_of(column.type))}
    children = []
    for field in fields_of(kind):
        index = present.get(field.name.lower())
        if index is None:
            children.append(pa.nulls(len(column), field.type))
        else:
            children.append(conform(column.field(index), field.type))
    return pa.StructArray.from_arrays(children, fields=fields_of(kind), mask=column.is_null())


def _list(column: pa.Array, kind: pa.ListType) -> pa.Array:
    return lists_of(conform(pc.list_flatten(column), kind.value_type), column)


def lists_of(values: pa.Array, column: pa.Array) -> pa.ListArray:
    """Returns lists as long as a column's, null where it is, of other values.

    Args:
        values: as many as flattening the column gives, which leaves out what a null list may refer
            to.
        column: of lists.
    """
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(_offsets(offsets, column), values)


def _offsets(offsets: pa.Array, column: pa.Array) -> pa.Array:
    """Returns offsets that are null where the column is: so Arrow marks null lists."""
    if not column.null_count:
        return offsets
    is_null = np.append(column.is_null().to_numpy(zero_copy_only=False), False)
    return pa.array(offsets.to_numpy(), mask=is_null)
