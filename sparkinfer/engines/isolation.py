"""Finds the rows that kill the process that scores them.

A row may end its worker in a way that no exception handler sees: a crash in native code, or the
operating system's out-of-memory killer. Such a chunk is cut into ever smaller parts; those that
score are kept, until the deadly rows are isolated.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sparkinfer.exceptions import JobError

PARTS = 8
"""How many parts a range is cut into: each level costs the deaths in one part, while the others'
work is kept."""

DEATHS_BEFORE_ISOLATION = 2
"""A single one may be the machine's fault: a preempted host, a neighbour that used up the memory.
For the same reason a row that is deadly on its own is given up only after this many deaths."""

MOST_DEADLY_ROWS = 16
"""Consecutive rows given up, after which something other than the rows must be at fault."""

_DEATH = re.compile(
    r"Python worker exited unexpectedly|ExecutorLostFailure|sparkinfer\.exceptions\.DeviceError"
    # What Spark sees of a worker that is killed while Spark writes to it.
    r"|Connection reset(?=[\s\S]*PythonRunner)"
)
_FAILED_TIMES = re.compile(r"Task \d+ in stage [\d.]+ failed (\d+) times")


def deaths_in(error: BaseException) -> int:
    """Returns how often a worker process died before a Spark job failed; 0 if none did.

    A worker that exits because its accelerator is broken counts as well.
    """
    text = f"{error} {error.__cause__ or ''}"
    if _DEATH.search(text) is None:
        return 0
    times = [int(count) for count in _FAILED_TIMES.findall(text)]
    return max(times, default=1)


class Isolation:
    """Scores a range of rows whose workers die, except for the rows that kill them.

    Args:
        score: scores a range (first row, number of rows); if the worker dies, raises an error that
            `deaths_in` recognises.
        give_up: called with a row that is deadly on its own, and the reason given for the death.
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
            JobError: workers die over every row.
            Exception: anything else that `score` raises.
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
        """Returns None if the rows were scored, else the reason given for the worker's death."""
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
