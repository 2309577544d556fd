"""The columns of what a function returns: inferred from its first results, and held to later."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.exceptions import ConfigError
from sparkinfer.files.conform import conform, lists_of
from sparkinfer.files.types import NotCarriedError, carried_type, common_type, fields_of, is_list
from sparkinfer.functions.formats import UnfitBatchError

_REMEDY = "give its columns as a schema, such as 'id bigint, label string'"


def infer_schema(name: str, results: Sequence[pa.RecordBatch], given: pa.RecordBatch) -> pa.Schema:
    """Returns the columns of a function's results, as types that Spark has.

    A column that is the input's, unchanged, keeps its type.

    Args:
        name: of the function, for messages.
        results: at least one.
        given: the rows that they were made of.

    Raises:
        ConfigError: they have no columns in common, or none that Spark has a type for.
    """
    names = results[0].schema.names
    for other in results[1:]:
        if other.schema.names != names:
            raise ConfigError(
                f"fn={name} returned columns {', '.join(names)} for one batch and "
                f"{', '.join(other.schema.names)} for another; return the same for each"
            )
    fields = [_field(name, column, [one.column(column) for one in results]) for column in names]
    kept = [_of_input(field, results, given) or field for field in fields]
    for field in kept:
        if _holds_null(field.type):
            raise ConfigError(
                f"fn={name} returned nothing but nulls for column {field.name!r} of the first "
                f"rows, which shows no type; {_REMEDY}"
            )
    return pa.schema(kept)


def fit(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns a function's result in the columns of a schema.

    Raises:
        UnfitBatchError: it has others, or values that are of another type.
    """
    for name in schema.names:
        if name not in rows.schema.names:
            raise UnfitBatchError(
                f"it returned no column {name!r}, but {', '.join(rows.schema.names)}"
            )
    for name in rows.schema.names:
        if name not in schema.names:
            raise UnfitBatchError(
                f"it returned a column {name!r}, which is not among {', '.join(schema.names)}"
            )
    columns = [_fitting(rows.column(field.name), field) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def in_common(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns the columns of a schema, as far as rows have them, and null for the others."""
    columns = []
    for field in schema:
        index = rows.schema.get_field_index(field.name)
        column = None
        if index >= 0:
            with contextlib.suppress(UnfitBatchError):  # another column of this name
                column = _fitting(rows.column(index), field)
        columns.append(pa.nulls(rows.num_rows, field.type) if column is None else column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _field(name: str, column: str, found: Sequence[pa.Array]) -> pa.Field:
    try:
        kind: pa.DataType = pa.null()
        for one in [one for one in found if len(one)] or found:  # without values, no type counts
            kind = common_type(kind, carried_type(one.type))
    except NotCarriedError as error:
        raise ConfigError(
            f"fn={name} returned a column {column!r} of a type that cannot be kept: {error}"
        ) from error
    return pa.field(column, kind)


def _of_input(
    field: pa.Field, results: Sequence[pa.RecordBatch], given: pa.RecordBatch
) -> pa.Field | None:
    """Returns the input's field if a column is the input's, unchanged."""
    index = given.schema.get_field_index(field.name)
    if index < 0 or sum(one.num_rows for one in results) != given.num_rows:
        return None
    kind, column = given.schema.field(index).type, given.column(index)
    was_whole = pa.types.is_integer(kind) and not column.null_count
    if was_whole and any(pa.types.is_floating(one.column(field.name).type) for one in results):
        return None  # it was given whole numbers: floats are its own, whatever their values
    try:
        parts = [_fitting(one.column(field.name), pa.field(field.name, kind)) for one in results]
    except UnfitBatchError:
        return None
    is_same = pa.concat_arrays(parts).equals(column)
    return pa.field(field.name, kind) if is_same else None


def _fitting(column: pa.Array, field: pa.Field) -> pa.Array:
    if not len(column):
        return pa.array([], field.type)  # numpy gives an array without values some type
    what = f"it returned column {field.name!r} as {column.type}, which does not fit {field.type}"
    if not _are_alike(column.type, field.type):
        raise UnfitBatchError(what)
    try:
        column = _with_nulls(column, field.type)
        made = conform(column, field.type)
        is_kept = _is_kept(column, made)
    except (pa.ArrowException, TypeError) as error:
        raise UnfitBatchError(f"{what} ({str(error).strip().splitlines()[0]})") from error
    if not is_kept:
        raise UnfitBatchError(f"{what} (values would change)")
    return made


def _with_nulls(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns floats that are to be whole numbers with null for NaN, at any depth of lists.

    Beside nulls, numpy and pandas have whole numbers only as floats, and a null as NaN.
    """
    if pa.types.is_integer(kind) and pa.types.is_floating(column.type):
        is_missing = pc.fill_null(pc.is_nan(column), False)
        return pc.if_else(is_missing, pa.scalar(None, column.type), column)
    if not (is_list(kind) and is_list(column.type)):
        return column
    inner = pc.list_flatten(column)
    with_nulls = _with_nulls(inner, kind.value_type)
    if with_nulls is inner:
        return column
    return lists_of(with_nulls, column)


def _is_kept(column: pa.Array, made: pa.Array) -> bool:
    """Returns whether a column's values are those that it was made of, but for a float's digits."""
    one, other = column.type, made.type
    if isinstance(column, pa.ExtensionArray):
        return _is_kept(column.storage, made)
    if pa.types.is_dictionary(one):
        return _is_kept(column.dictionary_decode(), made)
    if is_list(one):
        return _is_kept(pc.list_flatten(column), pc.list_flatten(made))
    if pa.types.is_struct(one):
        theirs = dict(zip((f.name.lower() for f in fields_of(one)), column.flatten(), strict=True))
        pairs = zip((f.name.lower() for f in fields_of(other)), made.flatten(), strict=True)
        return all(_is_kept(theirs[name], part) for name, part in pairs if name in theirs)
    if pa.types.is_floating(one) and pa.types.is_floating(other) and not pa.types.is_float16(one):
        return _count_infinite(column) == _count_infinite(made)
    if pa.types.is_timestamp(one) and pa.types.is_date(other):
        return bool(pc.cast(made, one, safe=False).equals(column))
    if pa.types.is_floating(one) and pa.types.is_decimal(other):
        before, after = (_as_floats(part) for part in (column, pc.cast(made, one)))
        few_digits = 4 * float(np.finfo(before.dtype).eps)
        return bool(np.allclose(after, before, rtol=few_digits, atol=0, equal_nan=True))
    return True


def _as_floats(column: pa.Array) -> npt.NDArray[np.floating[Any]]:
    values: npt.NDArray[np.floating[Any]] = column.to_numpy(zero_copy_only=False)
    return values


def _count_infinite(column: pa.Array) -> int:
    return int(pc.sum(pc.is_inf(column), min_count=0).as_py())


def _are_alike(one: pa.DataType, other: pa.DataType) -> bool:
    """Returns whether values of one type may be of the other: a number is not made a text."""
    if isinstance(one, pa.BaseExtensionType):
        return _are_alike(one.storage_type, other)
    if pa.types.is_dictionary(one):
        return _are_alike(one.value_type, other)
    if pa.types.is_null(one):
        return True
    if is_list(one) and is_list(other):
        return _are_alike(one.value_type, other.value_type)
    if pa.types.is_map(one) and pa.types.is_map(other):
        pairs = ((one.key_type, other.key_type), (one.item_type, other.item_type))
        return all(_are_alike(*pair) for pair in pairs)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        theirs = {field.name.lower(): field.type for field in fields_of(other)}
        return all(_are_alike(f.type, theirs.get(f.name.lower(), f.type)) for f in fields_of(one))
    return _family(one) == _family(other) != ""


def _family(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view":
        return "text"
    if types.is_temporal(kind):
        return "time"
    is_binary = types.is_binary(kind) or types.is_large_binary(kind)
    return "bytes" if is_binary or types.is_fixed_size_binary(kind) else ""


def _holds_null(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True
    if pa.types.is_nested(kind):
        return any(_holds_null(kind.field(index).type) for index in range(kind.num_fields))
    return False
