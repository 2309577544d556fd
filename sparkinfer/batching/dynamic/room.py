"""The room where calls wait for worker threads.

Threads know the room, and the work only while there is some: a batcher that nobody holds is
collected, and takes its threads with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from sparkinfer.batching.dynamic.calls import (
    Call,
    Item,
    called_itself,
    count_down,
    fail,
    hand_over,
    was_closed,
)
from sparkinfer.batching.dynamic.forks import reset_in_children
from sparkinfer.batching.dynamic.options import BatchOptions
from sparkinfer.batching.dynamic.waiting import Waiting

LONGEST_WAIT_S = 3600.0
"""A worker looks again after this time at the latest. Locks take no time without end, and a batcher
that is collected between a look and the wait wakes nobody."""


class Room:
    """Calls, and threads that work on them.

    Args:
        options: of the batcher.
        is_padded: whether items are padded to the longest of their batch.
        name: of the batcher, for messages and threads.
    """

    def __init__(self, options: BatchOptions, *, is_padded: bool, name: str) -> None:
        self._options = options
        self._is_padded = is_padded
        self._name = name
        self._is_closed = False
        self.reset()
        reset_in_children(self)

    def reset(self) -> None:
        """Makes it empty, without threads."""
        # One that its holder can take again: the garbage collector may close the room at any time.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting = Waiting(self._options, is_padded=self._is_padded)
        self._threads: dict[int | None, threading.Thread] = {}
        self._sleeping = 0

    @property
    def count(self) -> int:
        """Returns how many items wait."""
        return self._waiting.count

    def start(self) -> None:
        """Opens the room, and starts its threads unless they run."""
        with self._lock:
            self._is_closed = False
            if not self._threads:
                self._start_threads()

    def enter(self, call: Call) -> None:
        """Takes a call; it is handed over when it is over.

        Raises:
            BatcherClosedError: the room is closed.
            QueueFullError: there is no room, and the call is not to wait for it.
            CallError: the caller is the function itself.
        """
        with self._lock:
            if self._is_closed:
                raise was_closed(self._name)
            if call.is_within_itself or threading.get_ident() in self._threads:
                raise called_itself(self._name)
            if not self._threads:
                self._start_threads()
            waiting = self._waiting
            was_empty = not waiting.count
            waiting.enter(call, call.born)
            if self._sleeping and (was_empty or waiting.is_full):
                self._changed.notify()

    def leave(self, call: Call) -> bool:
        """Drops a call for which nobody waits any more; returns whether it was not over."""
        with self._lock:
            if not call.left:
                return False
            call.left = 0
            self._waiting.leave(call, time.monotonic())
            self._changed.notify()
            return True

    def close(self) -> list[threading.Thread]:
        """Ends all calls that wait, and takes no more.

        Returns:
            The threads, which end when the batches that are under way are done.
        """
        with self._lock:
            self._is_closed = True
            calls = self._waiting.clear()
            fail(calls, was_closed(self._name))
            threads, self._threads = [*self._threads.values()], {}
            self._changed.notify_all()
        hand_over(calls)
        return threads

    def serve(self) -> bool:
        """Waits for a batch and works on it; returns whether this thread is to go on."""
        batch = self._next_batch()
        if batch:
            batch[0].call.work.run(batch, self._settle)
        return bool(batch)

    def _start_threads(self) -> None:
        name = f"batches of {self._name}"
        for _ in range(self._options.workers):
            thread = threading.Thread(target=_serve, args=(self,), name=name, daemon=True)
            thread.start()
            self._threads[thread.ident] = thread

    def _next_batch(self) -> list[Item]:
        """Waits for a batch; returns none when this thread is to end."""
        mine, free_since = threading.get_ident(), time.monotonic()
        with self._lock:
            while mine in self._threads:
                now, due = time.monotonic(), self._waiting.due(free_since)
                if due <= now:
                    batch = self._waiting.take(now)
                    if self._waiting.count:
                        self._changed.notify()
                    return batch
                self._sleeping += 1
                self._changed.wait(min(due - now, LONGEST_WAIT_S))
                self._sleeping -= 1
            return []

    def _settle(self, items: Sequence[Item]) -> None:
        with self._lock:
            over = count_down(items)
        hand_over(over)


def _serve(room: Room) -> None:
    # What is known of a batch ends with the call: an idle thread holds nothing of it.
    while room.serve():
        pass
