"""Numbers in place of values of any type, so that rows can be told apart by arrays of integers.

Values are equal as in Spark's grouping: null is null, NaN is NaN, 0.0 is -0.0. The order of a map's
entries does not count.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Integers = npt.NDArray[np.int64]

Numbered = Callable[[pa.Array], Integers]
"""Returns a number for each value of a column that is not nested, any for a null."""

NULL = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""Source: Fibonacci hashing, 2**64 divided by the golden ratio."""


def codes_of(columns: Sequence[pa.Array]) -> Integers:
    """Returns integers from 0, int64 (rows,), equal exactly where the values of all columns are.

    They mean nothing beyond this call: pass the rows that are to be told apart all at once.
    """
    return _joined([_numbers(column, _codes) for column in columns], _codes) - NULL


def hashes_of(columns: Sequence[pa.Array]) -> Integers:
    """Returns integers, int64 (rows,), that are equal where the values of all columns are.

    They are the same in every process. Values that differ may have the same.
    """
    return _joined([_numbers(column, _hashes) for column in columns], _hashes)


def _numbers(column: pa.Array, numbered: Numbered) -> Integers:
    kind = column.type
    if pa.types.is_struct(kind):
        found = _joined([_numbers(child, numbered) for child in column.flatten()], numbered)
    elif pa.types.is_map(kind):
        found = _of_maps(column, numbered)
    elif pa.types.is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        found = numbered(_packed(_numbers(column.flatten(), numbered), lengths))
    elif pa.types.is_floating(kind):
        found = numbered(pa.array(_alike(column)))
    else:
        found = numbered(column)
    return np.where(column.is_null().to_numpy(zero_copy_only=False), NULL, found)


def _joined(parts: Sequence[Integers], numbered: Numbered) -> Integers:
    """Returns one integer for the integers of each row."""
    if len(parts) == 1:
        return parts[0]
    rows = np.ascontiguousarray(np.stack(parts, axis=1))
    kind = pa.binary(rows.itemsize * len(parts))
    return numbered(pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)]))


def _packed(numbers: Integers, lengths: Integers) -> pa.Array:
    """Returns integers as bytes, so many of them in each row."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) * numbers.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(numbers))]
    return pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)


def _of_maps(column: pa.MapArray, numbered: Numbered) -> Integers:
    offsets = column.offsets.to_numpy()
    lengths, inside = np.diff(offsets).astype(np.int64), slice(offsets[0], offsets[-1])
    children = (column.keys, column.items)
    entries = _joined([_numbers(child, numbered)[inside] for child in children], numbered)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return numbered(_packed(entries[np.lexsort((entries, rows))], lengths))


def _alike(column: pa.Array) -> Integers:
    """Returns the bits of numbers with a fraction, the same for those that are equal."""
    values = column.to_numpy(zero_copy_only=False).astype(np.float64) + 0.0
    values[np.isnan(values)] = np.nan
    bits: Integers = values.view(np.int64)
    return bits


def _codes(column: pa.Array) -> Integers:
    indices = pc.fill_null(column.dictionary_encode().indices, NULL)
    return np.asarray(indices.to_numpy(zero_copy_only=False), np.int64)


def _hashes(column: pa.Array) -> Integers:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = (zlib.crc32((value or "").encode()) for value in column.to_pylist())
        return np.fromiter(found, np.int64, len(column))
    if _is_bytes(kind):
        found = (zlib.crc32(value or b"") for value in column.to_pylist())
        return np.fromiter(found, np.int64, len(column))
    return _mixed(_as_integers(column))


def _is_bytes(kind: pa.DataType) -> bool:
    is_plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(is_plain or pa.types.is_fixed_size_binary(kind))


def _as_integers(column: pa.Array) -> Integers:
    """Returns integers that are equal where values of one width are."""
    if pa.types.is_decimal(column.type):
        return _alike(column.cast(pa.float64()))
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    integers: Integers = pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return integers


def _mixed(numbers: Integers) -> Integers:
    """Returns 32 bits of a hash of each, so that neighbours do not fall in step."""
    return ((numbers.view(np.uint64) * _MIX) >> np.uint64(32)).astype(np.int64)
