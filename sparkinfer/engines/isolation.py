"""Finds the rows that kill the process that scores them.

A row may end its worker in a way that no exception handler sees: a crash in native code, or memory
that the operating system takes back. Such a chunk is cut in parts again and again; what scores
well is kept, until the rows that kill stand alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sparkinfer.exceptions import JobError

PARTS = 8
"""Into how many parts a range is cut: each level costs the deaths of one part, and the others'
work is not lost."""

DEATHS_BEFORE_ISOLATION = 2
"""One may be the machine's fault: a preempted host, a neighbour that took the memory. So a row that
is deadly alone is given up only after as many deaths, too."""

MOST_DEADLY_ROWS = 16
"""Rows that are given up without one that scores between them, before it is not the rows' fault."""

_DEATH = re.compile(
    r"Python worker exited unexpectedly|ExecutorLostFailure|sparkinfer\.exceptions\.DeviceError"
    # What Spark sees of a worker that is killed while it is written to.
    r"|Connection reset(?=[\s\S]*PythonRunner)"
)
_FAILED_TIMES = re.compile(r"Task \d+ in stage [\d.]+ failed (\d+) times")


def deaths_in(error: BaseException) -> int:
    """Returns how often a worker process died for a Spark job to fail; 0 if none did.

    A worker whose accelerator is broken ends, too.
    """
    text = f"{error} {error.__cause__ or ''}"
    if _DEATH.search(text) is None:
        return 0
    times = [int(count) for count in _FAILED_TIMES.findall(text)]
    return max(times, default=1)


class Isolation:
    """Scores a range of rows whose workers die, but for the rows that kill them.

    Args:
        score: scores a range (first row, number of rows); raises what `deaths_in` knows if the
            worker dies.
        give_up: takes a row that is deadly alone, and what was said of its worker's death.
    """

    def __init__(
        self, score: Callable[[int, int], None], give_up: Callable[[int, str], None]
    ) -> None:
        self._score = score
        self._give_up = give_up
        self._deadly_in_turn = 0

    def run(self, first: int, rows: int) -> None:
        """Scores a range in parts.

        Raises:
            JobError: workers die over everything.
            Exception: what `score` raises beside.
        """
        size = max(1, -(-rows // PARTS))
        for start in range(first, first + rows, size):
            count = min(size, first + rows - start)
            reason = self._try(start, count)
            if reason is None:
                self._deadly_in_turn = 0
            elif count > 1:
                self.run(start, count)
            else:
                self._condemn(start, reason)

    def _try(self, first: int, rows: int) -> str | None:
        """Returns None if the rows scored, else what was said of the worker's death."""
        deaths, reason = 0, None
        while deaths < (DEATHS_BEFORE_ISOLATION if rows == 1 else 1):
            try:
                self._score(first, rows)
                return None
            except Exception as error:
                died = deaths_in(error)
                if not died:
                    raise
                deaths, reason = deaths + died, str(error)
        return reason

    def _condemn(self, row: int, reason: str) -> None:
        self._deadly_in_turn += 1
        if self._deadly_in_turn > MOST_DEADLY_ROWS:
            raise JobError(
                f"workers die over every row ({reason}): that is not the rows' fault; look at the "
                "memory of the executors, at their accelerators and at stall_timeout_s, and run "
                "again"
            )
        self._give_up(row, reason)
