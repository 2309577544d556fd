"""The loop over windows of rows: the next one is prepared while the one before is scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sparkinfer.workers import heap
from sparkinfer.workers.lookahead import InTurn, LookAhead
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.suspects import Suspects

W = TypeVar("W")
P = TypeVar("P")
R = TypeVar("R")


def score_windows(
    windows: Iterable[W],
    prepare: Callable[[W], P],
    score: Callable[[P], R],
    suspects: Suspects,
    statistics: ScoringStatistics,
) -> Iterator[R]:
    """Yields what is made of each window, in order; see `LookAhead`.

    Closing the iterator stops the thread and leaves the rest of the input unread.

    Args:
        windows: rows.
        prepare: works on the CPU, in a thread, while `score` has the window before.
        score: works on the accelerator.
        suspects: where there are any, what is prepared must not die of what is scored: nothing is
            prepared meanwhile.
        statistics: receives how long reading takes, and how long `score` waits.
    """
    ahead = (InTurn if suspects.known else LookAhead)(_timed(windows, statistics), prepare)
    try:
        ready = iter(ahead)
        while True:
            started = time.perf_counter()
            window = next(ready, None)
            statistics.wait_s += time.perf_counter() - started
            if window is None:
                return
            yield score(window)
            del window  # otherwise its pages are not free yet
            heap.trim()
    finally:
        ahead.close()


def _timed(windows: Iterable[W], statistics: ScoringStatistics) -> Iterator[W]:
    """Yields windows, and tells how long they took to come."""
    source = iter(windows)
    try:
        while True:
            started = time.perf_counter()
            window = next(source, None)
            statistics.read_s += time.perf_counter() - started
            if window is None:
                return
            yield window
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
