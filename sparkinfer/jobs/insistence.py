"""Doing what may be repeated: only while the lease is held, and again if a store hesitates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import sleep
from typing import TypeVar

from sparkinfer.disk_errors import is_passing
from sparkinfer.jobs.lease import Lease
from sparkinfer.logs import get_logger

logger = get_logger(__name__)

TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 8, 0.5, 30.0
"""For transient errors of a store: two minutes in all. A pause is four times the previous one."""

T = TypeVar("T")


class Insistence:
    """Does one thing after the other for the holder of a lease; thread-safe.

    Args:
        lease: that must be held.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._lock = threading.Lock()

    def __call__(self, act: Callable[[], T]) -> T:
        """Returns what an idempotent act returns; retries transient errors of a store.

        Raises:
            LeaseLostError: another run writes here now.
        """
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(TRIES)):
            with self._lock:
                self._lease.check()
            try:
                return act()
            except Exception as error:  # each store has its own errors
                if not left or not is_passing(error):
                    raise
                logger.warning("trying again in %g s: %s", pause_s, error)
                sleep(pause_s)
                pause_s = min(4 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("the last try returns or raises")
