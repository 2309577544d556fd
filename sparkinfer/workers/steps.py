"""Steps that may take long and may hang: what a process is at, and waits that end.

A model is fetched, loaded and tried out, in this process or in another one, before there are rows
whose progress could be seen. A wait for that reports every minute what it waits for. It ends once
nothing has moved for too long: the step is still the same, and so is what can be measured of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from sparkinfer.exceptions import JobError
from sparkinfer.logs import get_logger

logger = get_logger(__name__)

R = TypeVar("R")

LOOK_EVERY_S = 1.0
SAY_EVERY_S = 60.0


class Step(NamedTuple):
    """What a process is at.

    Attributes:
        doing: what, as a phrase.
        moved: grows while it moves; 0 if that cannot be seen.
    """

    doing: str
    moved: int = 0

    def __str__(self) -> str:
        return self.doing


_steps: list[tuple[str, Path | None]] = []
"""Those of this process, innermost last."""


@contextmanager
def step(doing: str, fills: Path | None = None) -> Iterator[None]:
    """Says what this process is at while the context is open.

    Args:
        doing: as a phrase, such as `fetching model 'x'`.
        fills: a folder whose files grow meanwhile; None: what moves cannot be seen.
    """
    entry = (doing, fills)
    _steps.append(entry)
    try:
        yield
    finally:
        _steps.remove(entry)  # not the last: a thread that hung may end after others have begun


def current_step() -> Step | None:
    """Returns what this process is at, None if it is at no step."""
    try:
        doing, fills = _steps[-1]
    except IndexError:
        return None
    return Step(doing, _bytes_in(fills) if fills is not None else 0)


def _bytes_in(folder: Path) -> int:
    """Returns how many bytes the files below a folder have, which may change meanwhile."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.lstat().st_size
        except OSError:  # renamed or removed
            continue
    return total


class Telling:
    """Reports every minute what is waited for.

    Args:
        what: is waited for, as a phrase.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()
        self._said = 0

    def at(self, step: Step | None) -> None:
        """Reports it with the step that it is at, if it is time; to be called often."""
        waited_s = time.monotonic() - self._started
        if waited_s // SAY_EVERY_S > self._said:
            self._said = int(waited_s // SAY_EVERY_S)
            minutes = round(waited_s / 60)
            logger.warning("still waiting for %s, for %d min now", _at(self._what, step), minutes)


def watched(act: Callable[[], R], what: str, timeout_s: float | None) -> R:
    """Returns the result of a function that does steps in this process; see `wait_for`.

    It runs in a thread of its own, which is left behind if it hangs.
    """
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="sparkinfer-step", daemon=True).start()
    return wait_for(future, what, timeout_s, current_step)


@contextmanager
def watched_from_beside(
    what: str, timeout_s: float | None, on_stall: Callable[[JobError], None]
) -> Iterator[None]:
    """Watches the steps that this thread does while the context is open; see `wait_for`.

    For what must be done in this very thread, such as choosing its GPU.

    Args:
        what: it does, as a phrase.
        timeout_s: see `wait_for`.
        on_stall: called in another thread if nothing moves for that long.
    """
    ended: Future[None] = Future()

    def watch() -> None:
        try:
            wait_for(ended, what, timeout_s, current_step)
        except JobError as error:
            on_stall(error)

    threading.Thread(target=watch, name="sparkinfer-step", daemon=True).start()
    try:
        yield
    finally:
        ended.set_result(None)


def wait_for(
    future: Future[R],
    what: str,
    timeout_s: float | None,
    now: Callable[[], Step | None],
) -> R:
    """Returns a result once it is there.

    Args:
        future: gives the result.
        what: is waited for, as a phrase.
        timeout_s: seconds without a move after which the wait ends; None: it does not.
        now: returns the step that it is at.

    Raises:
        JobError: nothing moved for that long.
        Exception: raised in place of a result.
    """
    pause_s = LOOK_EVERY_S if timeout_s is None else min(LOOK_EVERY_S, timeout_s / 4)
    seen, still_s, telling = now(), 0.0, Telling(what)
    while wait([future], pause_s).not_done:
        still_s += pause_s  # not by a clock: a machine that slept has not stalled
        found = now()
        if found != seen:
            seen, still_s = found, 0.0
        telling.at(seen)
        if timeout_s is not None and still_s >= timeout_s:
            raise JobError(
                f"nothing has moved for {timeout_s:g} s in {_at(what, seen)}; look there for what "
                "hangs, or have it wait longer with --set step_timeout_s=N, and run the same "
                "command again"
            )
    return future.result()


def _at(what: str, step: Step | None) -> str:
    return what if step is None else f"{what} ({step})"
