"""What a mounted folder does not do that a disk does: mounts of object stores differ.

Files are written from start to end and renamed where that can be; elsewhere they are copied.
"""

from __future__ import annotations

import errno
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


REMOTE_KINDS = (
    *("fuse", "nfs", "cifs", "smb", "9p", "ceph"),
    *("lustre", "gluster", "beegfs", "gpfs", "afs"),
)
"""How the names of file systems begin that are on another machine."""

_REFUSALS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL})
"""With which a file system may say that it has no such operation; also said for other reasons."""

_has_renames: dict[int, bool] = {}
"""Whether each device has renames; tried once in each process."""


def move(source: Path, target: Path) -> None:
    """Moves a file over another: renames it, or copies it where nothing can be renamed.

    While it is copied, a reader may see half of it; doing it again makes it whole.
    """
    try:
        source.replace(target)
        return
    except OSError as error:
        if error.errno not in _REFUSALS or renames(source.parent):
            raise
    with source.open("rb") as old, target.open("wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
        sync(new.fileno())
    source.unlink()


def renames(folder: Path) -> bool:
    """Returns whether files in a folder can take the place of others in one step."""
    device = folder.stat().st_dev
    if device in _has_renames:
        return _has_renames[device]
    # Without a folder of their own, which somebody who lists may be about to look into.
    old, new = (folder / f".sparkinfer-probe-{uuid.uuid4().hex}" for _ in range(2))
    try:
        old.write_bytes(b"old")
        can = _can_rename(new, old)
    finally:
        for file in (old, new):
            file.unlink(missing_ok=True)
    return _has_renames.setdefault(device, can)


def sync(handle: int) -> None:
    """Makes an open file survive a power failure, where the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise


def is_remote(path: Path) -> bool:
    """Returns whether a path is, or will be, on a file system of another machine.

    Source: proc(5), /proc/PID/mountinfo; False where there is no such file.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    found, kind = "", ""
    real = os.path.realpath(path)
    for line in lines:
        place = line.split(" ", 5)[4].encode().decode("unicode_escape")
        is_above = real == place or real.startswith(place.rstrip("/") + "/")
        if is_above and len(place) >= len(found):
            found, kind = place, line.partition(" - ")[2].split(" ")[0]
    return kind.startswith(REMOTE_KINDS)


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
            RENAME: lambda tried: _rename(tried / "new", tried / "file"),
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


def _can_rename(new: Path, old: Path) -> bool:
    try:
        return _rename(new, old) is None
    except OSError as error:
        if error.errno not in _REFUSALS:  # what fails for a while says nothing of the file system
            raise
        return False


def _rename(new: Path, old: Path) -> str | None:
    new.write_bytes(b"new")
    new.replace(old)
    is_new = old.read_bytes() == b"new"
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
