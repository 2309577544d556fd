"""The room where the calls of one event loop wait."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from sparkinfer.batching.dynamic.calls import (
    Call,
    Failure,
    Item,
    called_itself,
    count_down,
    fail,
    wake,
    was_closed,
)
from sparkinfer.batching.dynamic.options import BatchOptions
from sparkinfer.batching.dynamic.waiting import Waiting
from sparkinfer.batching.dynamic.work import Settle
from sparkinfer.exceptions import CallError

Run = Callable[[Sequence[Item], Settle], Coroutine[Any, Any, None]]


class LoopRoom:
    """Calls of coroutines, and tasks that work on them; everything happens in the loop's thread.

    Args:
        loop: that the callers run in.
        run: works on a batch.
        options: of the batcher.
        is_padded: whether items are padded to the longest of their batch.
        name: of the batcher, for messages.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        run: Run,
        options: BatchOptions,
        *,
        is_padded: bool,
        name: str,
    ) -> None:
        self.loop = loop
        self._run = run
        self._name = name
        self._waiting = Waiting(options, is_padded=is_padded)
        self._workers = options.workers
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_end = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """Returns how many items wait."""
        return self._waiting.count

    def enter(self, call: Call) -> None:
        """Takes a call, which is woken when it is over.

        Raises:
            QueueFullError: there is no room, and the call is not to wait for it.
            CallError: the caller is the function itself.
        """
        if call.is_within_itself:
            raise called_itself(self._name)
        self._waiting.enter(call, self.loop.time())
        if self._timer is None or self._waiting.is_full:
            self._look()

    def leave(self, call: Call) -> bool:
        """Drops a call for which nobody waits any more; returns whether it was not over."""
        if not call.left:
            return False
        call.left = 0
        self._waiting.leave(call, self.loop.time())
        self._look()
        return True

    def close(self) -> None:
        """Ends all calls that wait; batches that are under way go on."""
        calls = self._waiting.clear()
        fail(calls, was_closed(self._name))
        wake(calls)

    def _look(self) -> None:
        """Starts the batches that are due, and looks again when the next one is."""
        while len(self._tasks) < self._workers:
            # Another worker than the one that ended last has been free for longer.
            is_last = len(self._tasks) == self._workers - 1
            due = self._waiting.due(self._last_end if is_last else -math.inf)
            now = self.loop.time()
            if due > now:
                self._look_at(due)
                return
            self._start(self._waiting.take(now))

    def _look_at(self, due: float) -> None:
        if due < math.inf and self._timer is None:
            self._timer = self.loop.call_at(due, self._look_now)

    def _look_now(self) -> None:
        self._timer = None
        self._look()

    def _start(self, items: Sequence[Item]) -> None:
        context = items[0].call.context.copy()
        task = context.run(asyncio.ensure_future, self._run(items, self._settle))
        self._tasks.add(task)
        task.add_done_callback(partial(self._end, items))

    def _end(self, items: Sequence[Item], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._last_end = self.loop.time()
        if task.cancelled():
            error = CallError("the function was cancelled before it had a result; call it again")
            self._give_up(items, error)
        elif raised := task.exception():
            self._give_up(items, Failure.of(raised).error)
        # After those who were woken: what they ask for next can be in the batch.
        self.loop.call_soon(self._look)

    def _give_up(self, items: Sequence[Item], error: Exception) -> None:
        """Ends the calls of a batch that was stopped, as it is when the loop ends."""
        calls = [call for call in dict.fromkeys(item.call for item in items) if call.left]
        for call in calls:
            self._waiting.leave(call, self.loop.time())
        fail(calls, error)
        wake(calls)

    def _settle(self, items: Sequence[Item]) -> None:
        wake(count_down(items))
