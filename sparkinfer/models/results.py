"""What a pipeline returns, as columns: inferred from some results, and checked against a schema."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sparkinfer.models.ddl import type_as_ddl

WHOLE = "result"
"""Name of the one column that holds a whole result, whatever it is."""

_FLOATS = (pa.float32(), pa.float64())
_INTEGERS = {pa.int32(): 2**31, pa.int64(): 2**63}


class MisfitError(ValueError):
    """A result has another form than its columns; the message is a phrase."""


def plain(result: Any) -> Any:
    """Returns a result with Python's own numbers, lists and dictionaries for those of libraries."""
    if isinstance(result, Mapping):
        return {str(key): plain(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [plain(one) for one in result]
    for name in ("tolist", "item"):  # arrays of numpy, tensors of torch, and their numbers
        if hasattr(result, name) and not isinstance(result, str):
            return plain(getattr(result, name)())
    return result


def infer_columns(results: Sequence[Any], not_named: Sequence[str] = ()) -> pa.Schema:
    """Returns the columns of some results: their names if all are alike, else `WHOLE`.

    Args:
        results: at least one, each `plain`.
        not_named: names that no column may have.

    Raises:
        MisfitError: values at one place are of several types, or of none that a column may have.
    """
    named = [_named(one) for one in results]
    names = {None if one is None else frozenset(one) for one in named}
    lowered = [name.lower() for name in named[0] or ()]
    are_columns = len(names) == 1 and lowered and len(set(lowered)) == len(lowered)
    if are_columns and not set(lowered) & set(not_named):
        return pa.schema(list(_common("", named)))
    return pa.schema([pa.field(WHOLE, _common(WHOLE, results))])


def as_row(result: Any, columns: pa.Schema) -> dict[str, Any]:
    """Returns a result as a row of the columns.

    Args:
        result: `plain`.
        columns: their types.

    Raises:
        MisfitError: it has other names, or a value of another type.
    """
    if columns.names == [WHOLE]:
        return {WHOLE: _fit(WHOLE, result, columns.field(0).type)}
    named = _named(result)
    if named is None:
        form = f"a list of {len(result)}" if isinstance(result, list) else _called(result)
        raise MisfitError(f"the result is {form}, expected one with {', '.join(columns.names)}")
    row: dict[str, Any] = _fit("", named, pa.struct(list(columns)))
    return row


def _named(result: Any) -> Mapping[str, Any] | None:
    """Returns what has names: a result, or the one in a list; pipelines return such for a text."""
    if isinstance(result, list) and len(result) == 1:
        result = result[0]
    return result if isinstance(result, Mapping) and result else None


def _fit(place: str, value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind) and isinstance(value, list):
        return [_fit(f"{place}[{i}]", one, kind.value_type) for i, one in enumerate(value)]
    if pa.types.is_struct(kind) and isinstance(value, Mapping):
        _check_names(place, value, [field.name for field in kind])
        return {one.name: _fit(_inside(place, one.name), value[one.name], one.type) for one in kind}
    if _is_of(value, kind):
        return value
    raise MisfitError(f"{place} is {_called(value)}, expected {type_as_ddl(kind)}")


def _is_of(value: Any, kind: pa.DataType) -> bool:
    if kind in _FLOATS:
        return type(value) is float or (type(value) is int and abs(value) <= 2**53)
    if kind in _INTEGERS:
        return type(value) is int and -_INTEGERS[kind] <= value < _INTEGERS[kind]
    if pa.types.is_boolean(kind):
        return type(value) is bool
    return pa.types.is_string(kind) and type(value) is str and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def _check_names(place: str, value: Mapping[str, Any], names: Sequence[str]) -> None:
    where = place or "the result"
    for name in names:
        if name not in value:
            raise MisfitError(f"{where} has no {name!r}, but {', '.join(value)}")
    for name in value:
        if name not in names:
            raise MisfitError(f"{where} has {name!r}, which the schema lacks")


def _common(place: str, values: Sequence[Any]) -> pa.DataType:
    """Returns the type that holds all values at one place."""
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, list) for value in there):
        return pa.list_(_common(f"{place}[]", [one for value in there for one in value]))
    if there and all(isinstance(value, Mapping) for value in there):
        names = list(dict.fromkeys(name for value in there for name in value))
        for value in there:
            _check_names(place, value, names)
        return pa.struct(
            [(name, _common(_inside(place, name), [v[name] for v in there])) for name in names]
        )
    kinds = {type(value) for value in there}
    for candidate, kind in ((bool, pa.bool_()), (str, pa.string()), (int, pa.int64())):
        if kinds == {candidate}:
            return kind
    if kinds and kinds <= {int, float}:
        return pa.float64()
    found = " and ".join(sorted({_called(value) for value in there})) or "nothing"
    raise MisfitError(f"{place} is {found}, which gives no type of a column")


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _called(value: Any) -> str:
    if isinstance(value, bool | int | float) and not (
        isinstance(value, float) and not math.isfinite(value)
    ):
        return f"{type(value).__name__} {value}"
    names = {str: "a string", list: "a list", dict: "a struct", type(None): "null"}
    return names.get(type(value), f"of type {type(value).__name__}")
