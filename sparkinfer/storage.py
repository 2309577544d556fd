"""The only place where the package itself reads, writes, lists and moves files.

Paths are as the user wrote them: local, `dbfs:/…`, `s3://…`, `abfss://…` and anything else that
fsspec has a file system for. Paths that Spark reads and writes go to Spark unchanged and do not
pass through here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparkinfer import mounts
from sparkinfer.exceptions import ConfigError

SUCCESS_FILE = "_SUCCESS"
WORK_FOLDER = "_sparkinfer"
"""Folder in the output for what is not data; readers skip names that start with `_`."""

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""These have no folders: a folder is a common prefix of its files' names."""

S3 = frozenset({"s3", "s3a"})
OTHER_STORE = "install the fsspec package for this kind of path"


def absolute(path: str) -> str:
    """Returns a local path as this process means it now: from the root, without `~`.

    Another process has another working directory and may have another home. A path with a scheme
    is returned unchanged, `..` is left to the file system, since links may precede it.
    """
    if _has_scheme(path):
        return path
    return str(Path(path).expanduser().absolute())


def join(path: str, *names: str) -> str:
    """Returns the path of something in a folder, in the same notation as the folder's."""
    return posixpath.join(path.rstrip("/") or "/", *names)


def file_system(path: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a path, and the path as that file system names it.

    It does not use cached listings, since another process may have written meanwhile.

    Raises:
        ConfigError: no file system for this kind of path is known or installed.
    """
    from fsspec import __version__, filesystem  # not needed to find a model
    from fsspec.core import url_to_fs

    path = mounted(path)
    if not _has_scheme(path):  # its name may hold `::`, with which fsspec chains file systems
        fs = filesystem("file", use_listings_cache=False)
        return fs, str(fs._strip_protocol(path))
    try:
        return url_to_fs(path, use_listings_cache=False)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        # Another s3fs would replace the fsspec that is there.
        is_s3 = path.partition(":")[0] in S3
        need = f"run pip install s3fs=={__version__} (the extra [s3])" if is_s3 else OTHER_STORE
        raise ConfigError(f"path {path!r}: {str(error).strip()}; {need}") from None


def mounted(path: str) -> str:
    """Returns where Databricks mounts a `dbfs:/` path for ordinary programs; another unchanged.

    That is `/dbfs`, but for `dbfs:/Volumes`, which is the same as `/Volumes`.
    """
    if not path.startswith("dbfs:/"):
        return path
    below = path.removeprefix("dbfs:").lstrip("/")
    return f"/{below}" if f"{below}/".startswith("Volumes/") else f"/dbfs/{below}"


def exists(path: str) -> bool:
    """Returns whether there is a file or folder."""
    fs, name = file_system(path)
    return bool(fs.exists(name))


def is_file(path: str) -> bool:
    """Returns whether there is a file (not a folder)."""
    fs, name = file_system(path)
    return bool(fs.isfile(name))


def walk(path: str) -> dict[str, dict[str, Any]]:
    """Returns what the file system knows of each file below a folder, by its name there.

    Links are followed. Empty if there is no such folder.

    Raises:
        OSError: a link leads nowhere or back to a folder that it is in.
    """
    fs, root = file_system(path)
    root = root.rstrip("/") or "/"
    if is_local(fs):
        return dict(_walk_links(root, "", ()))
    found = {}
    for full, info in fs.find(root, detail=True).items():
        name = full[len(root) :].lstrip("/")
        # On an object store, an empty object whose name ends in a slash may stand for a folder.
        if name and not name.endswith("/"):
            found[name] = info
    return found


def _walk_links(
    folder: str, prefix: str, above: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields local files; fsspec leaves out what a link leads to."""
    real = os.path.realpath(folder)
    if real in above:
        raise OSError(errno.ELOOP, "a link leads back to a folder that it is in", folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat()  # of what a link leads to
            if stat.S_ISDIR(status.st_mode):
                yield from _walk_links(entry.path, f"{prefix}{entry.name}/", (*above, real))
            else:
                yield prefix + entry.name, {"size": status.st_size, "mtime": status.st_mtime}


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
    if is_local(fs):  # faster: fsspec collects much more than the size
        with os.scandir(folder) as entries:
            return dict(_sizes(entries))
    return {
        _name(entry["name"]): entry["size"]
        for entry in fs.ls(folder, detail=True)
        if entry["type"] == "file" and not _is_self(entry["name"], folder)
    }


def _sizes(entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, int]]:
    """Yields names and sizes of files; one may go while others are looked at."""
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file():
                yield entry.name, entry.stat().st_size


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _is_self(path: str, folder: str) -> bool:
    """Returns whether this is the folder itself.

    It may be an empty object with the folder's own name: store consoles and Spark create folders
    this way.
    """
    return path.rstrip("/") == folder.rstrip("/")


def file_size(path: str) -> int:
    """Returns a file's size in bytes."""
    fs, name = file_system(path)
    return int(fs.size(name))


def file_version(path: str) -> object:
    """Returns what changes when a file is written again.

    Raises:
        OSError: it is not there.
    """
    fs, name = file_system(path)
    return fs.ukey(name)


def make_folder(path: str) -> None:
    """Creates a folder and its parents, unless they exist.

    On an object store nothing is created: there, fsspec would turn a mistyped name into a bucket.
    """
    fs, name = file_system(path)
    if not _protocols(fs) & OBJECT_STORES:
        fs.makedirs(name, exist_ok=True)


def remove(path: str) -> None:
    """Removes a file or a folder with its contents, if it exists."""
    fs, name = file_system(path)
    if fs.exists(name):
        fs.rm(name, recursive=True)


def remove_if_empty(path: str) -> None:
    """Removes a folder in which there is nothing; on an object store there are none."""
    fs, name = file_system(path)
    if not _protocols(fs) & OBJECT_STORES:
        with contextlib.suppress(OSError):
            fs.rmdir(name)


def move(source: str, target: str) -> None:
    """Renames a file; on an object store and some mounts this is a copy and a removal."""
    fs, name = file_system(source)
    _, target_name = file_system(target)
    if is_local(fs):
        mounts.move(Path(name), Path(target_name))  # fsspec before 2024 copies
    else:
        fs.mv(name, target_name)


def rename_folder(source: str, target: str) -> None:
    """Renames a folder in one step where that can be done; removes it elsewhere."""
    fs, name = file_system(source)
    _, target_name = file_system(target)
    if is_local(fs) and mounts.renames(Path(name).parent):
        Path(name).rename(target_name)
    else:
        remove(source)


def sync(path: str) -> None:
    """Makes a local file survive a power failure; object stores are durable anyway."""
    fs, name = file_system(path)
    if is_local(fs):
        with Path(name).open("rb") as file:
            mounts.sync(file.fileno())


def put_file(file: Path, path: str) -> None:
    """Copies a file of this machine to a path."""
    fs, name = file_system(path)
    fs.put_file(str(file), name)


def write_text(path: str, text: str) -> None:
    """Writes a small file."""
    fs, name = file_system(path)
    fs.pipe_file(name, text.encode("utf-8"))


def replace_text(path: str, text: str) -> None:
    """Writes a small file so that a reader sees either the old text or the new one."""
    fs, name = file_system(path)
    if not is_local(fs) or not mounts.renames(Path(name).parent):
        write_text(path, text)  # an object store shows an object once it is complete
        return
    partial = f"{path}.{uuid.uuid4().hex}"
    try:
        write_text(partial, text)
        move(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            remove(partial)
        raise


def read_bytes(path: str) -> bytes | None:
    """Returns the content of a small file, None if there is no such file."""
    fs, name = file_system(path)
    try:
        content: bytes = fs.cat_file(name)
    except (FileNotFoundError, IsADirectoryError):
        return None
    return content


def read_range(path: str, start: int, end: int) -> bytes:
    """Returns the bytes of a file from one place up to another.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    fs, name = file_system(path)
    content: bytes = fs.cat_file(name, start=start, end=end)
    return content


def read_text(path: str) -> str | None:
    """Returns the text of a small file, None if there is no such file."""
    content = read_bytes(path)
    return None if content is None else content.decode("utf-8")


def is_local_path(path: str) -> bool:
    """Returns whether a path is on what this machine has, mounts included."""
    return is_local(file_system(path)[0])


def is_on_disk(path: str) -> bool:
    """Returns whether a path is on a disk of this machine, where nothing is slow or away."""
    fs, name = file_system(path)
    return is_local(fs) and not mounts.is_remote(Path(name))


def is_local(fs: Any) -> bool:
    """Returns whether it is what this machine has, mounts included."""
    return bool({"file", "local"} & _protocols(fs))


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _has_scheme(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path) is not None


def literal_path(path: str) -> str:
    """Returns a path escaped so that Spark's reader does not take it for a pattern."""
    return re.sub(r"([\\\[\]{}*?])", r"\\\1", path)
