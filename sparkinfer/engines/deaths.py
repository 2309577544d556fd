"""Chunks over which workers died: whether to try them again, and who is to be careful."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable

from sparkinfer.exceptions import JobError
from sparkinfer.logs import get_logger
from sparkinfer.plan.chunks import chunk_name
from sparkinfer.storage import join, names_in, remove
from sparkinfer.workers.suspects import (
    MOST_DEADLY,
    MOST_UNEXCEPTED,
    Attempt,
    Known,
    read_known,
)

logger = get_logger(__name__)

MOST_UNEXPLAINED = 2
"""Failures of a chunk in turn that tell nothing of its rows. A single one may be the machine's
fault: a preempted host, a neighbour that used up the memory."""

_DEATH = re.compile(
    r"Python worker exited unexpectedly|ExecutorLostFailure|sparkinfer\.exceptions\.DeviceError"
    # What Spark sees of a worker that is killed while Spark writes to it.
    r"|Connection reset(?=[\s\S]*PythonRunner)"
)


def is_death(error: BaseException) -> bool:
    """Returns whether a Spark job failed because a worker process died.

    A worker that exits because its accelerator is broken counts as well.
    """
    return _DEATH.search(f"{error} {error.__cause__ or ''}") is not None


class Deaths:
    """What is known of deaths over the chunks of a plan; thread-safe.

    Args:
        notes: folder for what workers note.
        lost: called when a worker has died.
    """

    def __init__(self, notes: str, lost: Callable[[], None] = lambda: None) -> None:
        self._notes = notes
        self._lost = lost
        self._over = {name.partition("-")[0] for name in names_in(notes)}
        self._known: dict[str, Known] = {}
        self._unexplained: Counter[str] = Counter()
        self._lock = threading.Lock()

    def are_over(self, chunk: int) -> bool:
        """Returns whether a worker has died over the chunk of a number, or may have."""
        return chunk_name(chunk) in self._over

    def attempt(self, chunk: int, launch: str, part: int = 0) -> Attempt:
        """Returns an attempt at the chunk of a number, or part of it; see `Attempt`."""
        return Attempt(
            self._notes, chunk_name(chunk), launch, part, has_predecessor=self.are_over(chunk)
        )

    def left_by(self, launch: str) -> list[int]:
        """Returns the numbers of the chunks of which workers of a launch have left notes."""
        parts = (name.split("-") for name in names_in(self._notes))
        return sorted({int(chunk) for chunk, by, *_ in parts if by == launch})

    def withdraw(self, launch: str) -> None:
        """Removes the notes of a launch that was ended: its workers did not die of their rows."""
        for name in names_in(self._notes):
            if name.split("-")[1] == launch:
                remove(join(self._notes, name))

    def add(self, chunk: int, error: Exception) -> None:
        """Notes that a worker died over the chunk of a number.

        Raises:
            JobError: there is no use in trying again.
        """
        name = chunk_name(chunk)
        logger.warning("chunk %d: its worker died: %s", chunk, error)
        self._lost()
        known = read_known(Attempt(self._notes, name, "driver"))
        with self._lock:
            self._over.add(name)
            is_news = known != self._known.get(name, Known())
            self._known[name] = known
            self._unexplained[name] = 0 if is_news else self._unexplained[name] + 1
            unexplained = self._unexplained[name]
        are_many = len(known.deadly) > MOST_DEADLY or known.unexcepted > MOST_UNEXCEPTED
        if are_many or unexplained >= MOST_UNEXPLAINED:
            raise JobError(
                f"workers die over chunk {chunk}, and it is not the fault of single texts "
                f"({error}): look at the memory of the executors, at their accelerators and at "
                "stall_timeout_s, and run again"
            ) from error
