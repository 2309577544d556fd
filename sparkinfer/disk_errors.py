"""Says in words what a file system's error means for a run, and what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sparkinfer.exceptions import JobError, TooManyErrorsError, UsageError

_GONE = (
    "is gone: deleted or moved while the run needed it, or removed by another run that has taken "
    "the output over; make sure that nothing else changes it"
)
_FAILS = "cannot be reached ({}): look at the disk or the mount"
_FORBIDDEN = "may not be changed by this user ({}): fix its permissions"

_PASSING = frozenset(
    {
        *(errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EPIPE),
        *(errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
        *(errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN),
    }
)
"""What mounted and remote file systems report when overloaded or reconnecting."""

_LASTING = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)

_CLIENTS = frozenset({"botocore", "aiohttp", "azure", "google", "requests", "urllib3"})
"""Packages that talk to stores, whose errors are not all OSErrors."""

_OF_CONNECTIONS = re.compile(
    "Connect|Timeout|HTTPClient|Payload|Service(Request|Response)|Transport"
)
"""In the names of those errors of theirs that tell of a connection, not of an answer."""

_MEANINGS = {
    errno.ENOSPC: "has no space left: free some on its disk",
    errno.EDQUOT: "has no space left in this user's quota: free some",
    errno.EROFS: "is mounted read-only: mount it for writing",
    errno.EMFILE: "cannot be opened, as too many files are open: raise the limit (ulimit -n)",
    errno.ENOENT: _GONE,
    **dict.fromkeys(_PASSING, _FAILS),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _FORBIDDEN),
}

_IN_TEXT = re.compile(r"\[Errno (\d+)\](?:[^\n]*?: '([^'\n]+)')?")
"""An OSError of a worker, of which only the text has reached the driver."""

_IN_JAVA = {
    "Mkdirs failed to create": errno.ENOENT,
    **{f"Exception: {os.strerror(number)}": number for number in _MEANINGS},
}


def is_passing(error: Exception) -> bool:
    """Returns whether an error is worth a retry; those without an errno, from a store, may be."""
    if not isinstance(error, OSError):
        return any(
            one.__module__.partition(".")[0] in _CLIENTS and _OF_CONNECTIONS.search(one.__name__)
            for one in type(error).__mro__
        )
    if isinstance(error, _LASTING):
        return False
    return error.errno is None or error.errno in _PASSING or isinstance(error, TimeoutError)


@contextmanager
def disk_errors_reported(output: str | None) -> Iterator[None]:
    """Raises JobError with what a file system's error means, if that is what ended the run.

    Args:
        output: the path that is named if the error names none.
    """
    try:
        yield
    except (UsageError, TooManyErrorsError):  # the latter quotes what ended rows, not the run
        raise
    except Exception as error:
        found = _find(error)
        if found is None:
            raise
        number, path = found
        meaning = _MEANINGS[number].format(os.strerror(number))
        named = path or output
        raise JobError(f"{named!r} {meaning}, and run the same command to resume") from error


def _find(error: BaseException) -> tuple[int, str | None] | None:
    """Returns the number and the path of the file system's error that an error stems from."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in _MEANINGS:
            return one.errno, one.filename
        if (match := _IN_TEXT.search(str(one))) and int(match[1]) in _MEANINGS:
            return int(match[1]), match[2]
    text = str(error)
    return next(((number, None) for said, number in _IN_JAVA.items() if said in text), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__
