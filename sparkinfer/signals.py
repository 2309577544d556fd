"""What the signals that ask a process to end do to a command.

The first one raises `Stopped` in the main thread: on its way out jobs are cancelled and the lease
is released. Those that come meanwhile would break that off, and are not heard: schedulers signal
both a process and its group, people press Ctrl-C twice. Where the way out is too long, the process
ends without having gone it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

ASKS_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

WAY_OUT_S = 60.0
"""Time from the first signal to the end of the process, whatever it still does by then."""

LOOK_EVERY_S = 1.0


class Stopped(KeyboardInterrupt):
    """The process was asked to end."""


class _Hearing:
    """The signals that are heard while its context is open, in the main thread only."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._handlers: dict[int, Any] = {}
        self._raised: weakref.ref[Stopped] | None = None
        self._first, self._closed = threading.Event(), threading.Event()

    def __enter__(self) -> _Hearing:
        for number in ASKS_TO_END:
            if signal.getsignal(number) != signal.SIG_IGN:  # as of a command under nohup
                self._handlers[number] = signal.signal(number, self.hear)
        self._show, sys.unraisablehook = sys.unraisablehook, self._pass_over
        threading.Thread(target=self._see_to_it, name="sparkinfer-signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._first.set()
        sys.unraisablehook = self._show
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _pass_over(self, lost: sys.UnraisableHookArgs) -> None:
        """Shows what gets lost in a `__del__`, but for `Stopped`, which is raised again."""
        if not isinstance(lost.exc_value, Stopped):
            self._show(lost)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Raises `Stopped`, unless one is on its way already."""
        if self._raised is not None and self._raised() is not None:
            return
        self.number = self.number or number
        self._first.set()
        raise self._stopped()  # in no variable: its traceback would then keep it forever

    def _stopped(self) -> Stopped:
        stopped = Stopped()
        self._raised = weakref.ref(stopped)
        return stopped

    def _see_to_it(self) -> None:
        """Has it raised again where it got lost, as in a `__del__`; ends the process at last."""
        self._first.wait()
        main = threading.main_thread().ident
        for _ in range(int(WAY_OUT_S / LOOK_EVERY_S)):
            if self._closed.wait(LOOK_EVERY_S):
                return
            if self._raised is not None and self._raised() is None and main is not None:
                signal.pthread_kill(main, signal.Signals(self.number or signal.SIGTERM))
        say(f"stopped, without waiting for what had not ended after {WAY_OUT_S:g} s; {GO_ON}")
        os._exit(exit_code(self.number))


GO_ON = "run the same command to resume"

_hearing: _Hearing | None = None
"""That of this process: signals have one handler."""


@contextmanager
def stops_heard() -> Iterator[None]:
    """Has the signals that ask to end raise `Stopped`; only the main thread can."""
    global _hearing
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _Hearing() as hearing:
        before, _hearing = _hearing, hearing
        try:
            yield
        finally:
            _hearing = before


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Sets our handlers again after code that has set its own, as Spark's for Ctrl-C."""
    try:
        yield
    finally:
        if _hearing is not None and threading.current_thread() is threading.main_thread():
            for number in ASKS_TO_END:
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, _hearing.hear)


def asked_to_end() -> int | None:
    """Returns the number of the signal that has asked this process to end, None if none has.

    What fails after that fails because of it.
    """
    return _hearing.number if _hearing is not None else None


def exit_code(number: int | None) -> int:
    """Returns with which code a shell expects a process to end at a signal; None: Ctrl-C."""
    return 128 + (number or signal.SIGINT)


def say(line: str) -> None:
    """Prints a last line on stderr, which may be closed."""
    with suppress(OSError, ValueError):
        print(f"sparkinfer: {line}", file=sys.stderr, flush=True)
