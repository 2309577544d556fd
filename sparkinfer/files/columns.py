"""Whether an input's columns are there and have the types that are needed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import pyarrow as pa

from sparkinfer.exceptions import InputError

TEXT = re.compile(r"string(_view)?")


def refuse_unknown(option: str, name: str, columns: Sequence[str]) -> None:
    """Raises InputError unless the input has a column.

    Args:
        option: that names it, for the message.
        name: of the column.
        columns: of the input.
    """
    if name not in columns:
        raise InputError(
            f"{option}={name!r}: no such column; the input has {', '.join(columns)}"
            f"{_other_delimiter(columns) or _nearest(name, columns)}"
        )


def check_type(option: str, column: pa.Field, allowed: re.Pattern[str], expected: str) -> None:
    """Raises InputError unless the name of a column's type matches.

    Args:
        option: that names the column, for the message.
        column: of the input.
        allowed: names of types; see `type_name`.
        expected: what these are called.
    """
    if not allowed.fullmatch(type_name(column.type)):
        raise wrong_type(option, column, expected)


def wrong_type(option: str, column: pa.Field, expected: str) -> InputError:
    """Returns the error of a column that has another type than those that are expected."""
    return InputError(
        f"{option}={column.name!r} has type {column.type}, expected {expected}; cast it before or "
        "name another column"
    )


def type_name(kind: pa.DataType) -> str:
    """Returns an Arrow type's name, the same for types that are the same in a Parquet file."""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{type_name(kind.key_type)}, {type_name(kind.item_type)}>"
    if pa.types.is_struct(kind):
        fields = (kind.field(index) for index in range(kind.num_fields))
        return f"struct<{', '.join(f'{field.name}: {type_name(field.type)}' for field in fields)}>"
    return str(kind).removeprefix("large_")


def _nearest(name: str, columns: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, columns, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _other_delimiter(columns: Sequence[str]) -> str:
    """Returns advice where a CSV file's header was not cut into names."""
    found = next((mark for mark in ";\t|" if len(columns) == 1 and mark in columns[0]), None)
    return f"; in a CSV file, give --set csv.delimiter={found!r}" if found else ""
