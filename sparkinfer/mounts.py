"""What a mounted folder refuses that a disk does not: such mounts of object stores differ."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

RENAME, LINK, EXCLUSIVE, APPEND, REWRITE = (
    "renames over a file",
    "hard links",
    "exclusive creation",
    "appends",
    "writes in the middle",
)


def refusals(folder: Path) -> dict[str, str]:
    """Returns why each operation that a folder does not have fails there, by its name.

    It tries them in a folder that it makes there and removes.

    Raises:
        OSError: not even a new file can be written.
    """
    tried = folder / f".sparkinfer-probe-{uuid.uuid4().hex}"
    tried.mkdir()
    try:
        (tried / "file").write_bytes(b"old")
        attempts = {
            RENAME: _rename,
            LINK: _link,
            EXCLUSIVE: _create_twice,
            APPEND: _append,
            REWRITE: _rewrite,
        }
        found = {name: _problem(attempt, tried) for name, attempt in attempts.items()}
        return {name: problem for name, problem in found.items() if problem is not None}
    finally:
        shutil.rmtree(tried, ignore_errors=True)


def _problem(attempt: Callable[[Path], str | None], folder: Path) -> str | None:
    try:
        return attempt(folder)
    except OSError as error:
        return error.strerror or str(error)


def _rename(folder: Path) -> str | None:
    (folder / "new").write_bytes(b"new")
    (folder / "new").replace(folder / "file")
    is_new = (folder / "file").read_bytes() == b"new"
    return None if is_new else "the old content is still there"


def _link(folder: Path) -> str | None:
    (folder / "linked").hardlink_to(folder / "file")
    return None


def _create_twice(folder: Path) -> str | None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(folder / "exclusive", flags))
    try:
        os.close(os.open(folder / "exclusive", flags))
    except FileExistsError:
        return None
    return "a file that exists is created again"


def _append(folder: Path) -> str | None:
    with (folder / "appended").open("wb") as file:
        file.write(b"a")
    with (folder / "appended").open("ab") as file:
        file.write(b"b")
    is_there = (folder / "appended").read_bytes() == b"ab"
    return None if is_there else "what was appended is not there"


def _rewrite(folder: Path) -> str | None:
    with (folder / "rewritten").open("wb", buffering=0) as file:
        file.write(b"abc")
        file.seek(1)
        file.write(b"x")
    is_there = (folder / "rewritten").read_bytes() == b"axc"
    return None if is_there else "what was written is not there"
