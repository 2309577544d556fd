"""What the input was when the run began: its files, with sizes and versions, and their row groups.

A run that resumes later compares the files with these, so that an output never mixes rows of two
states of the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.exceptions import InputError
from sparkinfer.plan.chunks import RowGroups
from sparkinfer.rows.reading import (
    InputFolders,
    column_places,
    encoded_bytes,
    match_names,
    open_parquet,
)
from sparkinfer.storage import file_system

FOOTERS_AT_ONCE = 16
"""Files whose footers are read at the same time: on an object store each takes a round trip."""

VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated")
"""Where file systems keep what changes with a file's content, the most reliable first."""


@dataclass(frozen=True)
class InputFile:
    """A file of the input as it was.

    Attributes:
        name: path below the input's folder; see `input_root`.
        size: in bytes.
        version: changes when the file does: a store's tag, else the modification time.
    """

    name: str
    size: int
    version: str


def input_root(path: str) -> str:
    """Returns the folder of an input's files: the input itself, or the folder of a single file."""
    fs, name = file_system(path)
    if not fs.isfile(name):
        return path
    folder, slash, _ = path.rpartition("/")
    return folder or slash or "."


def list_files(path: str) -> tuple[InputFile, ...]:
    """Returns the data files of an input, sorted by name.

    As in Spark, names that begin with `_` or `.` are not data, nor is anything in such folders.

    Raises:
        InputError: the path does not exist, or is a Delta table, whose files do not all belong to
            its current version.
    """
    fs, root = file_system(path)
    if fs.isfile(root):
        return (_input_file(root.rsplit("/", 1)[-1], fs.info(root)),)
    root = root.rstrip("/")
    if not fs.isdir(root):
        raise InputError(
            f"input {path!r} is neither a file nor a folder; give one (patterns are not "
            "supported), or register a table and give its name"
        )
    if fs.exists(f"{root}/_delta_log"):
        raise InputError(
            f"input {path!r} is a Delta table, and not all of its files belong to its last "
            "version; register it and give the table's name"
        )
    files = []
    for full, info in fs.find(root, detail=True).items():
        name = full[len(root) + 1 :]
        # On an object store, an empty object whose name ends in a slash may stand for a folder.
        is_folder = not name or name.endswith("/")
        if not is_folder and not any(_is_hidden(part) for part in name.split("/")):
            files.append(_input_file(name, info))
    return tuple(sorted(files, key=lambda file: file.name))


def read_row_groups(
    folders: InputFolders, names: Sequence[str], text_columns: Sequence[str], columns: Iterable[str]
) -> list[RowGroups]:
    """Returns the row groups of Parquet files, read from their footers.

    Args:
        folders: where the files are.
        names: of the files.
        text_columns: columns whose size counts as text.
        columns: columns that are read, including the texts; files may lack some.

    Raises:
        InputError: a file is not Parquet, or is damaged.
    """
    read = list(columns)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda name: _row_groups(folders, name, text_columns, read), names))


def differences(before: Iterable[InputFile], now: Iterable[InputFile]) -> list[str]:
    """Returns what changed between two states of an input, one line per file."""
    old, new = _by_name(before), _by_name(now)
    lines = [f"{name} is gone" for name in old if name not in new]
    lines += [f"{name} is new" for name in new if name not in old]
    for name in old.keys() & new.keys():
        if old[name] != new[name]:
            lines.append(
                f"{name} changed ({old[name].size} bytes of {old[name].version} then, "
                f"{new[name].size} bytes of {new[name].version} now)"
            )
    return sorted(lines)


def _by_name(files: Iterable[InputFile]) -> dict[str, InputFile]:
    return {file.name: file for file in files}


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or (part.startswith("_") and "=" not in part)


def _input_file(name: str, info: Mapping[str, Any]) -> InputFile:
    version = next((info[key] for key in VERSION_KEYS if info.get(key) is not None), "")
    return InputFile(name, int(info["size"]), str(version))


def _row_groups(
    folders: InputFolders, name: str, text_columns: Sequence[str], columns: Sequence[str]
) -> RowGroups:
    path = folders.find(name)
    try:
        with open_parquet(path) as file:
            metadata = file.metadata
            text = column_places(file, _present(file, text_columns))
            read = column_places(file, _present(file, columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"input file {path!r} is not readable as Parquet ({_first_line(error)}); repair or "
            "remove it"
        ) from None
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return RowGroups(
        name,
        rows=tuple(group.num_rows for group in groups),
        text_bytes=tuple(encoded_bytes(group, text) for group in groups),
        read_bytes=tuple(encoded_bytes(group, read) for group in groups),
    )


def _present(file: pq.ParquetFile, names: Iterable[str]) -> list[str]:
    return list(match_names(names, file.schema_arrow.names).values())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
