"""The files of a Delta table as it was in one of its versions, which its log names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from sparkinfer.exceptions import EngineUnavailableError, InputError
from sparkinfer.files.formats import PARQUET
from sparkinfer.files.listing import FoundFiles, input_file
from sparkinfer.files.partitions import partition_fields
from sparkinfer.messages import first_line
from sparkinfer.storage import mounted, walk

PLAIN_FEATURES = frozenset({"timestampNtz"})
"""What a reader must know of a table whose files hold its rows as they are. Others leave rows out
(deletion vectors) or name columns otherwise (column mapping)."""

_MISREAD = re.compile(r"%[0-9A-Fa-f]{2}|[\[\]|^\\]")


def misread_in(path: str) -> str | None:
    """Returns characters for which `deltalake` takes another folder, or panics; None: none."""
    found = _MISREAD.search(path)
    return None if found is None else found.group()


def find_delta(path: str, version: int) -> FoundFiles:
    """Returns the files of a version of a Delta table.

    Raises:
        InputError: there is no such table or version, or its files are not all there is to it.
        EngineUnavailableError: the package that reads Delta's log is not installed.
    """
    odd = misread_in(path)
    if odd is not None:
        raise InputError(
            f"input {path!r}: the package deltalake misreads {odd!r} in the name of a folder; "
            "rename it, or register the table with Spark and give its name"
        )
    table = _opened(path, version)
    protocol = table.protocol()
    features = {*(protocol.reader_features or ())} - PLAIN_FEATURES
    if protocol.min_reader_version == 2 or features:
        what = ", ".join(sorted(features)) or "column mapping"
        raise InputError(
            f"input {path!r} is a Delta table with {what}, and its files alone are not its rows; "
            "register it with Spark and give its name"
        )
    listed = pa.table(table.get_add_actions()).column("path").to_pylist()
    there = walk(path)
    names = _names(path, listed, there, version)
    if not names:
        raise InputError(f"input {path!r} has no rows in version {version}; give another")
    _refuse_other_types(path, names, table)
    files = tuple(input_file(name, there[name]) for name in names)
    columns = tuple(field.name for field in table.schema().fields)
    return FoundFiles((path,), path, PARQUET, files, columns=columns)


def _opened(path: str, version: int) -> Any:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as error:
        raise EngineUnavailableError(
            f"input_version={version} needs a package that is not installed ({error}); run pip "
            "install deltalake (the extra [delta])"
        ) from error
    try:
        return DeltaTable(mounted(path), version=version)
    except (DeltaError, OSError, ValueError) as error:
        raise InputError(
            f"input {path!r} cannot be read as version {version} of a Delta table "
            f"({first_line(error)}); give the folder of a table, and a version that it has"
        ) from error


def _names(path: str, listed: Sequence[str], there: Mapping[str, Any], version: int) -> list[str]:
    """Returns the names of files below the table's folder, as the file system has them.

    Args:
        path: the table's folder.
        listed: names by the log, whose special characters may be written as `%20`.
        there: what is below the folder.
        version: of the table.
    """
    names = []
    for given in listed:
        name = next((one for one in (given, unquote(given)) if one in there), None)
        if name is None:
            raise InputError(
                f"input {path!r}: file {given!r} of version {version} is gone, as VACUUM removes "
                "old ones; give a newer version"
            )
        names.append(name)
    return sorted(names)


def _refuse_other_types(path: str, names: Sequence[str], table: Any) -> None:
    """Raises InputError where the values in folders' names would get another type."""
    types = pa.schema(table.schema().to_arrow())
    for field in partition_fields(names):
        if field.name not in types.names:
            continue  # refused with whatever else is not in the table
        wanted = types.field(field.name).type
        if field.type != wanted:
            raise InputError(
                f"input {path!r}: the values of its partition column {field.name!r} would be read "
                f"as {field.type}, and are {wanted} in the table; register it with Spark and give "
                "its name"
            )
