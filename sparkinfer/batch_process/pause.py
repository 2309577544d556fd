"""What the signals that ask a process to end do to a run of a batch processor: it pauses."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sparkinfer.exceptions import JobError
from sparkinfer.signals import ASKS_TO_END


class PausedError(JobError):
    """The run was asked to end, and has committed what was done; the same call resumes it."""


@contextmanager
def pause_heard() -> Iterator[threading.Event]:
    """Yields an event that is set by SIGINT, SIGTERM or SIGHUP; only the main thread hears them.

    Those that follow change nothing: schedulers signal both a process and its group. Who cannot
    wait may kill the process, and loses what came after the last checkpoint.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def hear(number: int, frame: FrameType | None) -> None:
        asked.set()

    numbers = [one for one in ASKS_TO_END if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
