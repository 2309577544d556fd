"""Refuses parts of Delta, Hudi and Iceberg tables: not all of their files hold current rows."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sparkinfer.exceptions import InputError
from sparkinfer.storage import exists, is_file, join, names_in

_DELTA, _HUDI, _ICEBERG = "Delta", "Hudi", "Iceberg"
_MARKS = {"_delta_log": _DELTA, ".hoodie": _HUDI}
_BY_VERSION = ", or its folder with --input-version"
_ICEBERG_FILES = re.compile(r".*\.metadata\.json|version-hint\.text")


def refuse_lake_inside(path: str, names: Iterable[str]) -> None:
    """Raises InputError if the names of the files below a folder show a lake table in it."""
    for name in names:
        *folders, last = name.split("/")
        for folder in folders:
            if folder in _MARKS:
                _refuse(path, _MARKS[folder], join(path, *folders[: folders.index(folder)]))
        if folders[-1:] == ["metadata"] and _ICEBERG_FILES.fullmatch(last):
            _refuse(path, _ICEBERG, join(path, *folders[:-1]))


def refuse_lake_above(paths: Iterable[str]) -> None:
    """Raises InputError if one of some files and folders is, or lies in, a lake table.

    Each folder is looked into once, however many of the paths lie in it.
    """
    seen: set[str] = set()
    for path in paths:
        folder = _parent(path) if is_file(path) else path.rstrip("/")
        while folder and not folder.endswith(":/") and folder not in seen:
            seen.add(folder)
            for mark, kind in _MARKS.items():
                if _is_there(join(folder, mark)):
                    _refuse(path, kind, folder)
            if any(map(_ICEBERG_FILES.fullmatch, _names(join(folder, "metadata")))):
                _refuse(path, _ICEBERG, folder)
            folder = _parent(folder)


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0]


def _is_there(path: str) -> bool:
    try:
        return exists(path)
    except OSError:  # a folder above may be closed to us
        return False


def _names(folder: str) -> list[str]:
    try:
        return names_in(folder)
    except OSError:
        return []


def _refuse(path: str, kind: str, table: str) -> None:
    part = "is" if table.rstrip("/") == path.rstrip("/") else f"belongs to {table!r},"
    raise InputError(
        f"input {path!r} {part} a {kind} table, not all of whose files hold current rows; register "
        f"the table with Spark and give its name{_BY_VERSION if kind == _DELTA else ''}"
    )
