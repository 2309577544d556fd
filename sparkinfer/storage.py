"""The one place where the package itself reads, writes, lists and moves files.

Paths are what the user wrote: local, `dbfs:/…`, `s3://…`, `abfss://…` and whatever else fsspec
has a file system for. What Spark reads and writes goes to Spark as it is and does not pass here.
"""

from __future__ import annotations

import posixpath
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from sparkinfer.exceptions import ConfigError

SUCCESS_FILE = "_SUCCESS"
WORK_FOLDER = "_sparkinfer"
"""Folder in the output for what is no data; readers skip names that start with `_`."""


def join(path: str, *names: str) -> str:
    """Returns the path of something in a folder, in the folder's own notation."""
    return posixpath.join(path.rstrip("/") or "/", *names)


def file_system(path: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a path, and the path as that file system names it.

    Raises:
        ConfigError: no file system of this kind is known or installed.
    """
    try:
        return fsspec.core.url_to_fs(_mounted(path))  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"path {path!r}: {str(error).strip()}; install the fsspec package for this kind of path"
        ) from None


def exists(path: str) -> bool:
    """Returns whether there is a file or folder."""
    fs, name = file_system(path)
    return bool(fs.exists(name))


def is_file(path: str) -> bool:
    """Returns whether there is a file (not a folder)."""
    fs, name = file_system(path)
    return bool(fs.isfile(name))


def names_in(path: str) -> list[str]:
    """Returns the names in a folder, sorted; empty if there is no such folder."""
    fs, name = file_system(path)
    if not fs.isdir(name):
        return []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(name, detail=False))


def make_folder(path: str) -> None:
    """Makes a folder and those above it; one that is there already is left as it is."""
    fs, name = file_system(path)
    fs.makedirs(name, exist_ok=True)


def remove(path: str) -> None:
    """Removes a file or a folder with what it holds; nothing there is no error."""
    fs, name = file_system(path)
    if fs.exists(name):
        fs.rm(name, recursive=True)


def move(source: str, target: str) -> None:
    """Renames a file; on an object store this is a copy and a removal."""
    fs, name = file_system(source)
    _, target_name = file_system(target)
    if _is_local(fs):
        Path(name).replace(target_name)  # fsspec before 2024 copies
    else:
        fs.mv(name, target_name)


def write_text(path: str, text: str) -> None:
    """Writes a small file whole."""
    fs, name = file_system(path)
    fs.pipe_file(name, text.encode("utf-8"))


def replace_text(path: str, text: str) -> None:
    """Writes a small file such that a reader sees the old text or the new one, never a part."""
    if not renames_atomically(path):
        write_text(path, text)  # an object store shows an object once it is whole
        return
    partial = f"{path}.{uuid.uuid4().hex}"
    write_text(partial, text)
    move(partial, path)


def read_text(path: str) -> str | None:
    """Returns what a small file holds, None if there is no such file."""
    fs, name = file_system(path)
    try:
        content: bytes = fs.cat_file(name)
    except FileNotFoundError:
        return None
    return content.decode("utf-8")


def renames_atomically(path: str) -> bool:
    """Returns whether a file there can take the place of another in one step."""
    return _is_local(file_system(path)[0])


def _is_local(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return bool({"file", "local"} & set(protocols))


def count_rows(path: str, null_count_of: str) -> tuple[int, int]:
    """Returns the rows of a Parquet file and its nulls in one column.

    Read from the footer; only a row group without statistics has its column read.

    Args:
        path: a Parquet file.
        null_count_of: name of a top-level column that is not nested.
    """
    fs, name = file_system(path)
    nulls = 0
    with fs.open(name, "rb") as handle:
        file = pq.ParquetFile(handle)
        paths = [file.schema.column(i).path for i in range(len(file.schema))]
        column = paths.index(null_count_of)
        for index in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(index).column(column).statistics
            if statistics is not None and statistics.has_null_count:
                nulls += statistics.null_count
            else:
                nulls += file.read_row_group(index, [null_count_of]).column(0).null_count
        return file.metadata.num_rows, nulls


def _mounted(path: str) -> str:
    """Returns where Databricks mounts a `dbfs:/` path for ordinary programs."""
    if path.startswith("dbfs:/"):
        return "/dbfs/" + path.removeprefix("dbfs:").lstrip("/")
    return path
