"""Which files an input is: one path, several, or a pattern, resolved to files of one format."""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from sparkinfer.exceptions import InputError
from sparkinfer.files.formats import format_of, sniff
from sparkinfer.files.lakes import refuse_lake_above, refuse_lake_inside
from sparkinfer.storage import file_system, is_file, is_local, join, walk

VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated")
"""Where file systems keep what changes with a file's content, the most reliable first."""

_MAGIC = frozenset("*?[")
_SHOWN = 3
"""Names that a message lists."""


class MissingInputError(InputError):
    """A path of the input does not exist."""


@dataclass(frozen=True)
class InputFile:
    """A file of the input as it was.

    Attributes:
        name: path below the input's folder; see `FoundFiles.root`.
        size: in bytes.
        version: changes when the file does: a store's tag, else the modification time.
    """

    name: str
    size: int
    version: str


@dataclass(frozen=True)
class FoundFiles:
    """The files of an input.

    Attributes:
        paths: the files and folders that were given, patterns resolved.
        root: the folder that the names of files are relative to: the given folder, that of a given
            file, or the one that all given paths or what a pattern matches have in common.
        kind: format of all files.
        files: sorted by name.
        left_out: names of files in subfolders that are not read; see `find_files`.
        columns: names of all that there is in them, where a log says so.
    """

    paths: tuple[str, ...]
    root: str
    kind: str
    files: tuple[InputFile, ...]
    left_out: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None


def find_files(given: Sequence[str], kind: str = "auto") -> FoundFiles:
    """Returns the data files of an input.

    In a folder, as in Spark, names that begin with `_` or `.` are not data, and only subfolders
    named `key=value` are read. Files of another kind than the others are not data, unless they are
    data of another format, which is refused.

    Args:
        given: paths of files and folders, or patterns with `*`, `?`, `[...]` or `**`. A path that
            exists is taken as it is.
        kind: format; auto: judged by names, else by first bytes.

    Raises:
        InputError: there is nothing there, the format is not clear, a file is empty, or a lake
            table is involved.
    """
    given = [_without_dots(one) for one in given]
    paths = [path for one in given for path in _matches(one)]
    _refuse_several_stores(paths)
    refuse_lake_above(paths)
    root = _root(given, paths)
    listing = _Listing(root)
    for path in paths:
        listing.add(path)
    known, left_out = listing.known, listing.left_out
    if not known:
        _refuse_nothing(given, left_out)
    found, names = _of_one_kind(given, root, sorted(known), kind)
    files = tuple(input_file(name, known[name]) for name in names)
    for file in files:
        if file.size == 0:
            raise InputError(
                f"input file {join(root, file.name)!r} is empty (0 bytes): its copy may have "
                "failed; repair or remove it"
            )
    others = tuple(name for name in left_out if format_of(name) == found)
    return FoundFiles(tuple(paths), root, found, files, others)


class _Listing:
    """What is at some paths.

    Args:
        root: the folder that names are relative to.

    Attributes:
        known: what the file system knows of each file, by name.
        left_out: names of files in subfolders that are not read.
    """

    def __init__(self, root: str) -> None:
        self._below = len(_name(root).rstrip("/")) + 1
        self.known: dict[str, Mapping[str, Any]] = {}
        self.left_out: list[str] = []

    def add(self, path: str) -> None:
        """Adds a file, or the files in a folder."""
        prefix = _name(path)[self._below :]
        if is_file(path):
            self.known[prefix] = _info(path)
            return
        there = _walk(path)
        refuse_lake_inside(path, there)
        for name, info in there.items():
            if _is_hidden(name):
                continue
            full = f"{prefix}/{name}" if prefix else name
            if all("=" in folder for folder in name.split("/")[:-1]):
                self.known[full] = info
            else:
                self.left_out.append(full)


def _without_dots(path: str) -> str:
    """Returns a local path without `..`, so that a file that is given twice has one name.

    What precedes `..` may be a link, so it is looked up.
    """
    before, dots, after = f"{path}/".rpartition("/../")
    if not dots or _MAGIC & set(before):
        return path
    fs, name = file_system(before or "/")
    if not is_local(fs) or not before.endswith(name):
        return path
    return join(before.removesuffix(name) + str(Path(name, "..").resolve()), after.rstrip("/"))


def _refuse_several_stores(paths: Sequence[str]) -> None:
    stores = {type(file_system(path)[0]) for path in paths}
    if len(stores) > 1:
        raise InputError(
            f"input {_shown(paths[:_SHOWN])} is on several file systems; give paths on one of them"
        )


def _matches(path: str) -> list[str]:
    """Returns the path if it exists, else what it matches as a pattern."""
    fs, name = file_system(path)
    # Some file systems of fsspec say that a folder which nobody made does not exist.
    if fs.exists(name) or fs.isdir(name):
        return [path]
    prefix = path[: len(path) - len(name)] if path.endswith(name) else None
    found = sorted(fs.glob(name)) if _MAGIC & set(path) else []
    shown = [one for one in found if not _is_hidden(_last(one))]
    if not shown:
        raise MissingInputError(
            f"input {path!r} does not exist; give a file, a folder, a pattern that matches some, "
            "or a table name"
        )
    if prefix is None:
        return [str(fs.unstrip_protocol(one)) for one in shown]
    return [prefix + one for one in shown]


def _root(given: Sequence[str], paths: Sequence[str]) -> str:
    """Returns the folder that names are relative to; see `FoundFiles`."""
    if list(given) == list(paths) and len(paths) == 1:
        return paths[0].rstrip("/") or "/" if not is_file(paths[0]) else _parent(paths[0])
    # A pattern is cut before its first wildcard, so that it always has the same columns.
    there = set(paths)
    bases = [
        one if one in there and not is_file(one) else _parent(_before_magic(one, one not in there))
        for one in given
    ]
    common = os.path.commonpath([base.partition("://")[2] or base for base in bases])
    scheme, mark, _ = bases[0].rpartition("://")
    return scheme + mark + common if mark else common


def _before_magic(path: str, is_pattern: bool) -> str:
    return "".join(takewhile(lambda letter: letter not in _MAGIC, path)) if is_pattern else path


def _parent(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder or slash or "."


def _name(path: str) -> str:
    return str(file_system(path)[1]).rstrip("/") or "/"


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _info(path: str) -> Mapping[str, Any]:
    fs, name = file_system(path)
    if is_local(fs):  # fsspec tells of a link, not of its target
        status = Path(name).stat()
        return {"size": status.st_size, "mtime": status.st_mtime}
    found: Mapping[str, Any] = fs.info(name)
    return found


def _walk(path: str) -> dict[str, dict[str, Any]]:
    try:
        return walk(path)
    except OSError as error:
        raise InputError(
            f"input {path!r} cannot be listed ({error.strerror or error}: {error.filename}); "
            "repair or remove what is there"
        ) from None


def _is_hidden(name: str) -> bool:
    return any(
        part.startswith(".") or (part.startswith("_") and "=" not in part)
        for part in name.split("/")
    )


def _of_one_kind(
    given: Sequence[str], root: str, names: Sequence[str], kind: str
) -> tuple[str, list[str]]:
    """Returns the format, and the files that have it."""
    formats = {name: format_of(name) for name in names}
    if kind != "auto":
        chosen = [name for name in names if formats[name] == kind]
        chosen = chosen or [name for name in names if formats[name] is None]
        if not chosen:
            chosen = list(names) if len(names) == 1 else []
        if chosen:
            return kind, chosen
        raise InputError(f"input {_shown(given)} holds no {kind} files, but {_listed(names)}")
    if not any(formats.values()):
        formats = {name: sniff(join(root, name)) for name in names}
    found = {known: name for name, known in reversed(formats.items()) if known is not None}
    if len(found) == 1:
        [only] = found
        return only, [name for name in names if formats[name] == only]
    what = (
        f"files of several formats ({', '.join(sorted(found.values()))})"
        if found
        else f"no file of a known format, but {_listed(names)}"
    )
    raise InputError(
        f"input {_shown(given)} holds {what}; expected Parquet, CSV or JSON lines: give one of "
        "them, or say which with --input-format"
    )


def _refuse_nothing(given: Sequence[str], left_out: Sequence[str]) -> None:
    if left_out:
        raise InputError(
            f"input {_shown(given)} holds files only in subfolders ({_listed(left_out)}), of which "
            f"only those named key=value are read; give a pattern, such as {given[0].rstrip('/')}"
            "/*/*"
        )
    raise InputError(f"input {_shown(given)} holds no files; give a path with data")


def _shown(given: Sequence[str]) -> str:
    return " ".join(repr(one) for one in given)


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def input_file(name: str, info: Mapping[str, Any]) -> InputFile:
    """Returns a file as it is, by what its file system knows of it."""
    version = next((info[key] for key in VERSION_KEYS if info.get(key) is not None), "")
    return InputFile(name, int(info["size"]), str(version))
