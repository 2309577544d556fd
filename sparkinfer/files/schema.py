"""The columns of an input whose files may differ: matched by name, with a type that loses nothing.

As in Spark, the case of a name does not matter, and a column that a file lacks is null there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import pyarrow as pa

from sparkinfer.files.partitions import partition_fields
from sparkinfer.files.types import (
    EXACT_IN_DOUBLE,
    NotCarriedError,
    carried_type,
    common_type,
    without_nulls_type,
)

Bounds = Callable[[str, str], tuple[int, int] | None]
"""Returns the least and the largest whole number of a column (file, column), None: not known."""


@dataclass(frozen=True)
class UnitedSchema:
    """The columns of all files together.

    Attributes:
        columns: names, in the order of the first file; then those that only later files have, then
            those of the folders.
        schema: the columns that can be read, with the types that they have in the run.
        refused: why each other column cannot be read, as a phrase that follows its name.
    """

    columns: tuple[str, ...]
    schema: pa.Schema
    refused: dict[str, str]


@dataclass
class _Column:
    """What the files have under one name.

    Attributes:
        name: as the first file spells it.
        found: files by type.
        refused: why it cannot be read, "" if it can.
    """

    name: str
    found: dict[pa.DataType, list[str]] = field(default_factory=dict)
    refused: str = ""


def unite(names: Sequence[str], schemas: Iterable[pa.Schema], bounds: Bounds) -> UnitedSchema:
    """Returns the columns of some files.

    Args:
        names: of the files, relative to the input's folder.
        schemas: the columns of each.
        bounds: asked only where some files have a column in whole numbers and others in fractions.

    Raises:
        InputError: the files' names have different `key=value` folders.
    """
    columns: dict[str, _Column] = {}
    last: pa.Schema | None = None
    for name, schema in zip(names, schemas, strict=True):
        if last is None or not schema.equals(last):
            places = _add(columns, name, schema)
        else:
            for column, kind in places:
                column.found[kind].append(name)
        last = schema
    of_folders = partition_fields(names)
    for one in of_folders:  # as in Spark, the folder's value counts if the file has one too
        columns.pop(one.name.lower(), None)
    fields, refused = [], {}
    for column in columns.values():
        reason = column.refused
        try:
            kind = _type_of(column, bounds)
        except NotCarriedError as error:
            reason = reason or str(error)
        if reason:
            refused[column.name] = reason
        else:
            fields.append(pa.field(column.name, without_nulls_type(kind)))
    fields += of_folders
    order = (*(column.name for column in columns.values()), *(one.name for one in of_folders))
    return UnitedSchema(order, pa.schema(fields), refused)


def _add(
    columns: dict[str, _Column], name: str, schema: pa.Schema
) -> list[tuple[_Column, pa.DataType]]:
    """Adds the columns of a file; returns where its name went."""
    places = []
    seen: dict[str, str] = {}
    for one in schema:
        key = one.name.lower()
        column = columns.setdefault(key, _Column(one.name))
        if key in seen:
            twice = "" if seen[key] == one.name else f" ({seen[key]!r} and {one.name!r})"
            column.refused = f"is twice in {name!r}{twice}: which of the two is meant is not clear"
        seen[key] = one.name
        column.found.setdefault(one.type, []).append(name)
        places.append((column, one.type))
    return places


def _type_of(column: _Column, bounds: Bounds) -> pa.DataType:
    """Returns the type in which all files can be read.

    Raises:
        NotCarriedError: there is none.
    """
    carried: dict[pa.DataType, list[str]] = {}
    for kind, files in column.found.items():
        carried.setdefault(carried_type(kind), []).extend(files)
    try:
        found = reduce(common_type, carried)
    except NotCarriedError:
        raise NotCarriedError(_conflict(carried)) from None
    if pa.types.is_floating(found):
        for name in carried.get(pa.int64(), ()):
            known = bounds(name, column.name)
            if known is None or max(map(abs, known)) > EXACT_IN_DOUBLE:
                reason = f"{_conflict(carried)}, which cannot hold its whole numbers beyond 2^53"
                raise NotCarriedError(reason)
    return found


def _conflict(carried: dict[pa.DataType, list[str]]) -> str:
    shown = [f"{kind} in {files[0]!r}" for kind, files in carried.items()]
    return f"has type {' and '.join(shown[:3])}"


def match_names(wanted: Iterable[str], present: Sequence[str]) -> dict[str, str]:
    """Maps each wanted name to the present one; as in Spark, case does not matter."""
    lowered = {name.lower(): name for name in reversed(present)}
    exact = set(present)
    return {
        name: name if name in exact else lowered[name.lower()]
        for name in wanted
        if name in exact or name.lower() in lowered
    }
