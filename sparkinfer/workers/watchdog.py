"""The watchdog: reports what a scorer hangs in, and where, once it has hung for too long.

A forward pass can hang in a driver call or a kernel, a tokenizer in a regular expression; nothing
is raised then, and a job waits forever. A separate thread notices, since the one that hangs cannot.

Code that hangs without releasing Python's global lock stops the watchdog too; torch and the fast
tokenizers release it.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

POLL_S = 1.0
"""Time between two looks at what the scorer is doing; less if the timeout is short."""

LAST_WORD_S = 30.0
"""Time that a process that must end may spend on reporting why."""


class ForwardPass(NamedTuple):
    """A batch is in the model.

    Attributes:
        rows: of the batch.
        longest: tokens of the longest row.
    """

    rows: int
    longest: int

    def __str__(self) -> str:
        return f"the forward pass of {_count(self.rows, 'row')} of up to {self.longest} tokens"


class Tokenising(NamedTuple):
    """A window is in the tokenizer.

    Attributes:
        column: of the window, the first one that its texts are made of.
    """

    column: pa.Array

    def __str__(self) -> str:
        what = f"the tokenising of {_count(len(self.column), 'row')}"
        kind = self.column.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return what  # a number in a template, or a list of messages
        return f"{what} of up to {pc.max(pc.utf8_length(self.column)).as_py() or 0} characters"


class PipelineCall(NamedTuple):
    """A text is in a pipeline.

    Attributes:
        characters: of the text.
    """

    characters: int

    def __str__(self) -> str:
        return f"the pipeline's call with a text of {_count(self.characters, 'character')}"


class FunctionCall(NamedTuple):
    """A batch is in a user's function.

    Attributes:
        name: of the function.
        rows: of the batch.
    """

    name: str
    rows: int

    def __str__(self) -> str:
        return f"the call of {self.name} with {_count(self.rows, 'row')}"


Activity = ForwardPass | Tokenising | PipelineCall | FunctionCall


@dataclass(frozen=True)
class StallReport:
    """What a scorer hangs in.

    Attributes:
        line: what, for how long and where, in one line.
        stacks: the Python frames of every thread, innermost last.
    """

    line: str
    stacks: str

    def __str__(self) -> str:
        return f"{self.line}\n\n{self.stacks}"


class Watchdog:
    """Watches what a scorer does while its context is open, from a separate thread.

    An activity is timed by the looks at it, not by a clock: a process that was stopped and then
    continued, or a machine that slept, has not stalled.

    Args:
        activities: returns what the scorer is doing now; None for a thread that waits. One object
            per activity: the same object means the same activity.
        timeout_s: an activity that lasts longer is a stall; None: nothing is watched.
        on_stall: called with a report once for each stall, in the watchdog's thread.

    Attributes:
        where: names the work in the report, such as `chunk 12 task 1`; may change.
    """

    def __init__(
        self,
        activities: Callable[[], Sequence[Activity | None]],
        timeout_s: float | None,
        on_stall: Callable[[StallReport], None],
        where: str = "",
    ) -> None:
        self.where = where
        self._activities = activities
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._on_stall = on_stall
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparkinfer-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._timeout_s < math.inf:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        pause_s = min(POLL_S, self._timeout_s / 4)
        seen: list[Activity | None] = [None] * len(self._activities())
        lasted_s = [0.0] * len(seen)
        looked = time.monotonic()
        while not self._closed.wait(pause_s):
            # If the pause took much longer, more than the scorer was suspended.
            passed_s = min(time.monotonic() - looked, 2 * pause_s)
            looked = time.monotonic()
            for index, activity in enumerate(self._activities()):
                if activity is None or activity is not seen[index]:
                    seen[index], lasted_s[index] = activity, 0.0
                    continue
                lasted_s[index] += passed_s
                if lasted_s[index] >= self._timeout_s:
                    lasted_s[index] = -math.inf  # each stall is reported once
                    self._on_stall(self._report(activity))

    def _report(self, activity: Activity) -> StallReport:
        index = f"process {os.getpid()} on {socket.gethostname()}"
        index = f"{self.where}, {index}" if self.where else index
        line = f"no progress for {self._timeout_s:g} s in {activity} ({index})"
        return StallReport(line, stacks())


def end_process(tell: Callable[[], None]) -> None:
    """Ends this process, whatever its other threads do, after a final report.

    Args:
        tell: sends the report; waited for, but not forever.
    """
    deadline = threading.Timer(LAST_WORD_S, os._exit, [1])
    deadline.daemon = True
    deadline.start()
    try:
        tell()
    except BaseException:  # it must not keep the process alive
        traceback.print_exc()
    finally:
        # sys.exit ends only its own thread, and would wait for code that never returns.
        os._exit(1)


def stacks() -> str:
    """Returns the Python frames of every other thread, innermost last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
