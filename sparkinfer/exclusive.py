"""Creating a small file unless it exists, as surely as its file system can.

Who won shows in the content: a caller writes something of its own and reads the file afterwards.
"""

from __future__ import annotations

import contextlib
import inspect
import uuid
from pathlib import Path
from typing import Any

from sparkinfer import mounts
from sparkinfer.logs import get_logger
from sparkinfer.storage import file_system, is_local, read_text, write_text

logger = get_logger(__name__)

STORES_THAT_CREATE_EXCLUSIVELY = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""Elsewhere fsspec's `mode="create"` may check and then write, so that two can both succeed."""

CLIENT_IS_TOO_OLD = frozenset({"ParamValidationError", "TypeError"})
"""What botocore before 1.35.20 raises for a conditional request, without sending it."""


def create_exclusively(path: str, text: str, *, durable: bool = False, prove: bool = False) -> bool:
    """Creates a file, complete from the start, unless it exists.

    Args:
        path: of the file.
        text: its content.
        durable: whether it must survive a power failure.
        prove: whether to find out that a second creation fails, as some stores ignore the
            condition; costs a request.

    Returns:
        Whether it is certain that no two processes can both have created it.

    Raises:
        Exception: whatever the file system raises; the file may still appear.
    """
    fs, name = file_system(path)
    if is_local(fs):
        return _create_local(Path(name), text, durable)
    return _create_on_store(path, text, prove)


def _create_local(path: Path, text: str, durable: bool) -> bool:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        _write(partial, text, durable)
        with contextlib.suppress(OSError):  # a mounted store may lack hard links
            _link(path, partial)
            return True
    finally:
        partial.unlink(missing_ok=True)
    # If this fails half-way, what is there stays: it may be another's, as a mounted store may check
    # only on closing.
    with contextlib.suppress(FileExistsError):
        _write(path, text, durable)
    return False


def _link(path: Path, partial: Path) -> None:
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(partial)


def _write(path: Path, text: str, durable: bool) -> None:
    with path.open("x", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        if durable:
            mounts.sync(handle.fileno())


def _create_on_store(path: str, text: str, prove: bool) -> bool:
    fs, name = file_system(path)
    option = _exclusive_option(fs)
    if option:
        try:
            fs.pipe_file(name, text.encode("utf-8"), **option)
            return not prove or _refuses(fs, name, text, option)
        except FileExistsError:
            return True
        except Exception as error:
            if read_text(path) is not None:
                return False
            # Another's may be on its way: an unconditional one of ours would overwrite it.
            if type(error).__name__ not in CLIENT_IS_TOO_OLD:
                raise
            logger.info("%s was not created exclusively: %s", path, error)
    if read_text(path) is None:
        write_text(path, text)
    return False


def _refuses(fs: Any, name: str, text: str, option: dict[str, Any]) -> bool:
    """Returns whether a second creation fails: some stores ignore the condition."""
    try:
        fs.pipe_file(name, text.encode("utf-8"), **option)
    except FileExistsError:
        return True
    except Exception as error:
        logger.info("%s: %s", name, error)
    return False


def _exclusive_option(fs: Any) -> dict[str, Any] | None:
    """Returns the option that makes a file system create exclusively, None if it cannot."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not protocols & STORES_THAT_CREATE_EXCLUSIVELY:
        return None
    parameters = inspect.signature(getattr(fs, "_pipe_file", fs.pipe_file)).parameters
    if "mode" in parameters:  # s3fs and gcsfs since 2024
        return {"mode": "create"}
    return {"overwrite": False} if "overwrite" in parameters else None  # adlfs
