"""The one place where the package itself reads, writes, lists and moves files.

Paths are what the user wrote: local, `dbfs:/…`, `s3://…`, `abfss://…` and whatever else fsspec
has a file system for. What Spark reads and writes goes to Spark as it is and does not pass here.
"""

from __future__ import annotations

import os
import posixpath
import uuid
from pathlib import Path
from typing import Any

import fsspec

from sparkinfer.exceptions import ConfigError

SUCCESS_FILE = "_SUCCESS"
WORK_FOLDER = "_sparkinfer"
"""Folder in the output for what is no data; readers skip names that start with `_`."""

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""There are no folders in these: a folder is what the names of its files begin with."""


def join(path: str, *names: str) -> str:
    """Returns the path of something in a folder, in the folder's own notation."""
    return posixpath.join(path.rstrip("/") or "/", *names)


def file_system(path: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a path, and the path as that file system names it.

    It never answers from a listing that it has kept: another process may have written since.

    Raises:
        ConfigError: no file system of this kind is known or installed.
    """
    try:
        return fsspec.core.url_to_fs(  # type: ignore[no-any-return]
            _mounted(path), use_listings_cache=False
        )
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
    fs, folder = file_system(path)
    if not fs.isdir(folder):
        return []
    return sorted(_name(full) for full in fs.ls(folder, detail=False) if not _is_self(full, folder))


def sizes_in(path: str) -> dict[str, int]:
    """Returns the sizes in bytes of the files in a folder, by name."""
    fs, folder = file_system(path)
    if not fs.isdir(folder):
        return {}
    if _is_local(fs):  # of thousands of files, fsspec tells much more than their size
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    return {
        _name(entry["name"]): entry["size"]
        for entry in fs.ls(folder, detail=True)
        if entry["type"] == "file" and not _is_self(entry["name"], folder)
    }


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _is_self(path: str, folder: str) -> bool:
    """Returns whether this is the folder itself.

    An empty object with the folder's own name: store consoles and Spark make folders so.
    """
    return path.rstrip("/") == folder.rstrip("/")


def file_size(path: str) -> int:
    """Returns a file's size in bytes."""
    fs, name = file_system(path)
    return int(fs.size(name))


def make_folder(path: str) -> None:
    """Makes a folder and those above it; one that is there already is left as it is.

    On an object store nothing is made: there, fsspec would make a bucket of a mistyped name.
    """
    fs, name = file_system(path)
    if not _protocols(fs) & OBJECT_STORES:
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


def rename_folder(source: str, target: str) -> None:
    """Renames a folder, in one step where the file system can; on an object store it is removed."""
    fs, name = file_system(source)
    _, target_name = file_system(target)
    if _is_local(fs):
        Path(name).rename(target_name)
    else:
        remove(source)


def sync(path: str) -> None:
    """Has the disk keep a local file over a loss of power; stores keep what they took."""
    fs, name = file_system(path)
    if _is_local(fs):
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str, text: str) -> None:
    """Writes a small file whole."""
    fs, name = file_system(path)
    fs.pipe_file(name, text.encode("utf-8"))


def replace_text(path: str, text: str, durable: bool = False) -> None:
    """Writes a small file such that a reader sees the old text or the new one, never a part.

    Args:
        path: of the file.
        text: what it holds then.
        durable: whether it has to be there after a loss of power.
    """
    if not renames_atomically(path):
        write_text(path, text)  # an object store shows an object once it is whole
        return
    partial = f"{path}.{uuid.uuid4().hex}"
    write_text(partial, text)
    if durable:
        sync(partial)
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
    return bool({"file", "local"} & _protocols(fs))


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _mounted(path: str) -> str:
    """Returns where Databricks mounts a `dbfs:/` path for ordinary programs."""
    if path.startswith("dbfs:/"):
        return "/dbfs/" + path.removeprefix("dbfs:").lstrip("/")
    return path
