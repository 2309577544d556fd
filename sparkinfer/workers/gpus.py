"""Which GPU a worker process holds: one, from the first that it gets until the process ends.

A model stays loaded from task to task, so its GPU must stay the same, too. Spark promises less. It
gives each running task a GPU of its own, but runs the next task in any idle Python worker: one that
has a model on GPU 0 may be given GPU 1, on which another worker has one. Following Spark, both
would load again, at times two models on one GPU.

So a process takes the address that Spark names as a hint. It holds a GPU by a lock on a file of its
host, and the file says in place of which address its holder works now. A process without a GPU
tries the one it was given; where the holder of that works in place of another address, it tries
that address, and so on. Running tasks have different addresses, so this ends at a GPU that is free
or whose holder has no task. Such a holder is asked to release it: Spark may keep more workers than
there are GPUs, and those without a task must not keep the others waiting.

Locks end with their process, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparkinfer.workers import resident

PATIENCE_S = 10.0
"""Time for which a process waits for a GPU. Spark may give an address away while the worker of a
killed task ends, and a worker without a task may take seconds to release its model."""

POLL_S = 0.05

IDLE = "idle"
"""In the file of a GPU whose holder has no task."""


class _Claim:
    """A GPU that this process holds.

    Args:
        index: torch's.
        file: whose lock is held.
        path: of the file.
    """

    def __init__(self, index: int, file: int, path: Path) -> None:
        self.index = index
        self._file = file
        self.wishes = _wishes(path)

    def note(self, state: str) -> None:
        """Writes what the holder does, in a single write, so that it is read whole."""
        os.pwrite(self._file, f"{state:<16}".encode("ascii"), 0)

    def release(self) -> None:
        os.close(self._file)


_claim: _Claim | None = None
_tasks = 0  # running in this process
_former: int | None = None  # index of the GPU that this process held last
_gave_up = False
_guard = threading.RLock()


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """Keeps the GPU of this process from being asked for while the context is open."""
    global _tasks
    with _guard:  # not while it is being released
        _tasks += 1
    try:
        yield
    finally:
        with _guard:
            _tasks -= 1
            if not _tasks and _claim is not None:
                _claim.note(IDLE)


def hold_gpu(names: Sequence[str], given: int | None, first: int = 0) -> int | None:
    """Returns the index of the GPU that this process holds, after taking one if it has none.

    Called in `at_work`.

    Args:
        names: of the GPUs, the same in all processes of the host, in the order of torch's indices.
        given: the index that Spark gave to the running task; None if it schedules no GPUs.
        first: the index to try first in that case.

    Returns:
        None if all GPUs are held by processes that do not release them.
    """
    global _gave_up
    if _claim is None:
        deadline = time.monotonic() + (0.0 if _gave_up else PATIENCE_S)
        while not _take_any(names, given, first) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    _gave_up = _claim is None  # then later tasks do not wait again
    if _claim is None:
        return None
    _claim.note(str(_claim.index if given is None else given))
    return _claim.index


def release_gpus() -> None:
    """Releases the GPU that this process holds; its model has been released."""
    global _claim
    with _guard:
        if _claim is not None:
            _claim.release()
        _claim = None


def _take_any(names: Sequence[str], given: int | None, first: int) -> bool:
    """Tries the GPUs that may be free once; asks holders without a task to release theirs."""
    # The one that it has held before comes first: torch keeps some memory there.
    if _former is not None and _former < len(names) and _take(_former, names):
        return True
    if given is None:
        return any(_take((first + offset) % len(names), names) for offset in range(len(names)))
    tried: set[int] = set()
    index: int | None = given
    while index is not None and index not in tried and index < len(names):
        if _take(index, names):
            return True
        tried.add(index)
        index = _worked_for(names[index])
    return False


def _take(index: int, names: Sequence[str]) -> bool:
    """Takes a GPU if nobody holds it, else asks its holder to release it unless it has a task."""
    global _claim, _former
    path = _path(names[index])
    import fcntl  # not on Windows, where there are only CPU workers

    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        if _worked_for(names[index]) is None:
            _wish(path)
        return False
    claim = _Claim(index, file, path)
    claim.note(str(index))
    with _guard:
        _claim, _former = claim, index
    threading.Thread(target=_hear_wishes, args=(claim,), daemon=True).start()
    return True


def _worked_for(name: str) -> int | None:
    """Returns the index that the task of a GPU's holder was given; None without a task."""
    try:
        state = _path(name).read_text("ascii").strip()
    except OSError:
        return None
    return int(state) if state.isdecimal() else None


def _wish(path: Path) -> None:
    """Asks the holder of a GPU to release it; a wish that is not heard is repeated."""
    with contextlib.suppress(OSError):  # nobody listens at this moment
        os.close(os.open(_wishes(path), os.O_WRONLY | os.O_NONBLOCK))


def _hear_wishes(claim: _Claim) -> None:
    """Releases a GPU when another process asks for it and this one has no task."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(claim.wishes, 0o600)
    while True:
        try:
            os.close(os.open(claim.wishes, os.O_RDONLY))  # returns when another process opens it
        except OSError:
            return  # the temporary folder was cleared; the GPU is held until the process ends
        with _guard:
            if _claim is not claim:
                return
            if not _tasks:
                resident.release()
                release_gpus()
                return


def _path(name: str) -> Path:
    """Returns the file whose lock represents a GPU."""
    # One file per user: another user's could not be opened for writing.
    file = f"sparkinfer-{os.getuid()}-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
    return Path(tempfile.gettempdir()) / file


def _wishes(path: Path) -> Path:
    return path.with_suffix(".wishes")
