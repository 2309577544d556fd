"""What an Arrow type is carried as, and the type in which files that differ are read alike.

Spark moves the rows in two of three engines, so a column is carried as a type that Spark has, in
all of them alike. What Spark has no type for is not carried.
"""

from __future__ import annotations

import pyarrow as pa

_PLAIN = {
    pa.null(): pa.null(),
    pa.bool_(): pa.bool_(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.float32(): pa.float32(),
    pa.float64(): pa.float64(),
    pa.large_string(): pa.string(),
    pa.string(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary(): pa.binary(),
    pa.date32(): pa.date32(),
    pa.date64(): pa.date32(),
    **{kind: kind for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
}
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_EXACT_IN_FLOAT = {pa.float32(): _INTEGERS[:2], pa.float64(): _INTEGERS[:3]}
_DIGITS = {pa.int8(): 3, pa.int16(): 5, pa.int32(): 10, pa.int64(): 19}

MOST_DIGITS = 38
"""Of a decimal in Spark."""

EXACT_IN_DOUBLE = 1 << 53
"""Up to which every whole number is a float64."""


class NotCarriedError(Exception):
    """A type cannot be carried, or two types have none in common; the message names them."""


def carried_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type as which a column is carried; null stays null until files are united.

    Raises:
        NotCarriedError: there is none.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return carried_type(kind.storage_type)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if pa.types.is_dictionary(kind):
        return carried_type(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz and "UTC")
    if pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_decimal(kind) and kind.precision <= MOST_DIGITS and kind.scale >= 0:
        return pa.decimal128(kind.precision, kind.scale)
    if pa.types.is_struct(kind):
        return _carried_struct(kind)
    if pa.types.is_map(kind):
        return pa.map_(carried_type(kind.key_type), carried_type(kind.item_type))
    if is_list(kind):
        return pa.list_(carried_type(kind.value_type))
    if str(kind) in ("string_view", "binary_view"):
        return pa.string() if str(kind) == "string_view" else pa.binary()
    raise NotCarriedError(f"has type {kind}, which Spark does not have")


def is_list(kind: pa.DataType) -> bool:
    """Returns whether it is a list of any kind."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def without_nulls_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type with string in place of null: Parquet files of Spark have no such type."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct(
            [pa.field(field.name, without_nulls_type(field.type)) for field in fields_of(kind)]
        )
    if pa.types.is_map(kind):
        return pa.map_(without_nulls_type(kind.key_type), without_nulls_type(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(without_nulls_type(kind.value_type))
    return kind


def fields_of(kind: pa.StructType) -> list[pa.Field]:
    """Returns the fields of a struct."""
    return [kind.field(index) for index in range(kind.num_fields)]


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Returns the type that holds the values of two carried types without loss.

    int64 and a float have float64 in common only if the whole numbers are small enough; that is up
    to the caller (`EXACT_IN_DOUBLE`) and only reported for columns, not of what is nested in them.

    Raises:
        NotCarriedError: there is none.
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    found = _common_number(one, other) or _common_number(other, one) or _common_nested(one, other)
    if found is None:
        raise NotCarriedError(f"{one} and {other}")
    return found


def _carried_struct(kind: pa.StructType) -> pa.DataType:
    names = [field.name.lower() for field in fields_of(kind)]
    if not names or len(set(names)) < len(names):
        what = "no fields" if not names else "two fields of one name"
        raise NotCarriedError(f"has type {kind}, a struct with {what}")
    return pa.struct([pa.field(field.name, carried_type(field.type)) for field in fields_of(kind)])


def _common_number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one in _INTEGERS and other in _INTEGERS:
        return max(one, other, key=_INTEGERS.index)
    if one in _INTEGERS and pa.types.is_floating(other):
        return other if one in _EXACT_IN_FLOAT[other] else pa.float64()
    if pa.types.is_floating(one) and pa.types.is_floating(other):
        return pa.float64()
    if pa.types.is_decimal(one) and (pa.types.is_decimal(other) or other in _INTEGERS):
        whole = _DIGITS[other] if other in _INTEGERS else other.precision - other.scale
        scale = max(one.scale, 0 if other in _INTEGERS else other.scale)
        precision = max(one.precision - one.scale, whole) + scale
        return pa.decimal128(precision, scale) if precision <= MOST_DIGITS else None
    return None


def _common_nested(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_exact(one.value_type, other.value_type))
    if pa.types.is_map(one) and pa.types.is_map(other):
        return pa.map_(_exact(one.key_type, other.key_type), _exact(one.item_type, other.item_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        found = {field.name.lower(): field for field in fields_of(one)}
        for field in fields_of(other):
            known = found.setdefault(field.name.lower(), field)
            found[field.name.lower()] = pa.field(known.name, _exact(known.type, field.type))
        return pa.struct(list(found.values()))
    return None


def _exact(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    found = common_type(one, other)
    if pa.types.is_floating(found) and pa.int64() in (one, other):
        raise NotCarriedError(f"{one} and {other}")
    return found
