"""Columns that are in a file's path: `day=2024-01-01/a.parquet` has a column `day`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date
from urllib.parse import unquote

import pyarrow as pa

from sparkinfer.exceptions import InputError

NULL_VALUE = "__HIVE_DEFAULT_PARTITION__"


def partition_values(name: str) -> dict[str, str | None]:
    """Returns the columns in a file's name, which is relative to the input's folder."""
    pairs = [part.split("=", 1) for part in name.split("/")[:-1] if "=" in part]
    return {unquote(key): None if value == NULL_VALUE else unquote(value) for key, value in pairs}


def partition_fields(names: Iterable[str]) -> list[pa.Field]:
    """Returns the columns in the names of all files, with the narrowest type that loses nothing.

    A column is int32 or int64 if each value is a number as it would be printed (`7`, not `07`), a
    date if each is one in ISO 8601, else string.

    Raises:
        InputError: files differ in the columns that their names have.
    """
    values: dict[str, set[str | None]] = {}
    first: tuple[str, tuple[str, ...]] | None = None
    for name in names:
        found = partition_values(name)
        _refuse_twice(name, found)
        first = first or (name, tuple(found))
        if tuple(found) != first[1]:
            raise InputError(
                f"input files {first[0]!r} and {name!r} have different key=value folders "
                f"({', '.join(first[1]) or 'none'}; {', '.join(found) or 'none'}); give one of the "
                "folders, or a pattern that matches files with the same ones"
            )
        for key, value in found.items():
            values.setdefault(key, set()).add(value)
    return [pa.field(key, _type_of(known - {None})) for key, known in values.items()]


def _refuse_twice(name: str, found: Iterable[str]) -> None:
    """Raises InputError if two folders in a file's name have one column, in whatever case."""
    folders = sum("=" in part for part in name.split("/")[:-1])
    if len({key.lower() for key in found}) < folders:
        raise InputError(
            f"input file {name!r} has two key=value folders of one name; give the folder below "
            "the first of them"
        )


def _type_of(values: set[str | None]) -> pa.DataType:
    texts = [value for value in values if value is not None]
    if texts and all(map(_is_number, texts)):
        return pa.int32() if all(abs(int(text)) < 1 << 31 for text in texts) else pa.int64()
    return pa.date32() if texts and all(map(_is_date, texts)) else pa.string()


def _is_number(text: str) -> bool:
    return re.fullmatch(r"0|-?[1-9][0-9]*", text) is not None and abs(int(text)) < 1 << 63


def _is_date(text: str) -> bool:
    return re.fullmatch(r"\d{4}-\d\d-\d\d", text) is not None and _holds(date.fromisoformat, text)


def _holds(read: Callable[[str], object], text: str) -> bool:
    try:
        read(text)
    except ValueError:
        return False
    return True
