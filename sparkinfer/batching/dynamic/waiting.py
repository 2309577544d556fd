"""The queue: when a batch leaves, and what is in it. No threads, no clock: times are arguments."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from sparkinfer.batching.dynamic.calls import Call, Item
from sparkinfer.batching.dynamic.options import BatchOptions
from sparkinfer.batching.planner import plan_batches
from sparkinfer.exceptions import QueueFullError

QUIET_SHARE = 0.1
"""A batch leaves when a worker is free and nothing new came for this share of the time limit."""

FAIR_TURN = 4
"""Each so many batches, one is of those that have waited longest, whatever their priority."""

WINDOW_BATCHES = 8
"""Items of like length are looked for among the first so many batches."""

Lane = OrderedDict[Item, None]


class Waiting:
    """The items that wait, and the calls that wait for room among them.

    Attributes:
        count: items that wait.
    """

    def __init__(self, options: BatchOptions, *, is_padded: bool = False) -> None:
        self._options = options
        self._limit_s = options.timeout_ms / 1000
        self._by_length = is_padded or options.max_batch_tokens is not None
        self._chooses = self._by_length or options.max_batch_length is not None
        most = [options.max_batch_length, options.max_batch_tokens]
        self._full_length = min((size for size in most if size), default=math.inf)
        self._lanes: dict[int, Lane] = {}
        self._blocked: OrderedDict[Call, None] = OrderedDict()
        self._newest = 0.0
        self._length = 0
        self._turn = 0
        self.count = 0

    @property
    def is_full(self) -> bool:
        """Returns whether there is enough for a batch that can take no more."""
        return self.count >= self._options.batch_size or self._length >= self._full_length

    def enter(self, call: Call, now: float) -> None:
        """Takes a call, or has it wait for room.

        Raises:
            QueueFullError: there is no room, and the call is not to wait for it.
        """
        if not self._blocked and self._has_room(call):
            self._add(call, now)
        elif self._options.when_full == "wait":
            self._blocked[call] = None
        else:
            raise QueueFullError(
                f"{self.count} items wait and max_queue is {self._options.max_queue}: no room for "
                f"{len(call.items)} more; call again later, or let calls wait: when_full='wait'"
            )

    def leave(self, call: Call, now: float) -> None:
        """Drops what still waits of a call."""
        if call in self._blocked:
            del self._blocked[call]
        self._drop([item for item in call.items if item in self._lanes.get(item.priority, ())])
        self._let_in(now)

    def due(self, free_since: float = -math.inf) -> float:
        """Returns when the next batch leaves if nothing comes before: -inf, or a time, or inf.

        Args:
            free_since: when the worker that asks ended its last batch. Whoever got a result of it
                may call again at once, and is waited for: callers that are in two groups, of which
                one waits while the other is worked on, come together again.
        """
        if self.count == 0:
            return math.inf
        if self.is_full:
            return -math.inf
        oldest = min(next(iter(lane)).born for lane in self._lanes.values())
        quiet_s = self._limit_s * QUIET_SHARE
        return max(min(oldest + self._limit_s, self._newest + quiet_s), free_since + quiet_s)

    def take(self, now: float) -> list[Item]:
        """Returns the items of the next batch, at least one; they wait no more."""
        size = self._options.batch_size
        if self._chooses:
            batch = self._chosen(list(islice(self._in_order(), size * WINDOW_BATCHES)))
        else:
            batch = list(islice(self._in_order(), size))
        self._drop(batch)
        self._let_in(now)
        return batch

    def clear(self) -> list[Call]:
        """Returns all calls of which something waits; nothing does any more."""
        waiting = dict.fromkeys(item.call for lane in self._lanes.values() for item in lane)
        calls = [*waiting, *self._blocked]
        self._lanes.clear()
        self._blocked.clear()
        self.count = self._length = 0
        return calls

    def _has_room(self, call: Call) -> bool:
        most = self._options.max_queue
        return most is None or self.count == 0 or self.count + len(call.items) <= most

    def _add(self, call: Call, now: float) -> None:
        for item in call.items:
            item.born = now
            lane = self._lanes.get(item.priority)
            if lane is None:
                lane = self._lanes[item.priority] = OrderedDict()
            lane[item] = None
            self._length += item.length
        self.count += len(call.items)
        self._newest = now

    def _drop(self, items: Iterable[Item]) -> None:
        for item in items:
            lane = self._lanes[item.priority]
            del lane[item]
            if not lane:
                del self._lanes[item.priority]
            self._length -= item.length
            self.count -= 1

    def _let_in(self, now: float) -> None:
        while self._blocked and self._has_room(first := next(iter(self._blocked))):
            del self._blocked[first]
            self._add(first, now)

    def _in_order(self) -> Iterator[Item]:
        """Returns the items in the order in which they should leave."""
        if len(self._lanes) == 1:
            return iter(next(iter(self._lanes.values())))
        self._turn += 1
        if self._turn % FAIR_TURN == 0:
            return heapq.merge(*self._lanes.values(), key=lambda item: item.born)
        return chain.from_iterable(self._lanes[priority] for priority in sorted(self._lanes))

    def _chosen(self, window: list[Item]) -> list[Item]:
        """Returns those that leave with the first."""
        alike = [item for item in window if item.kind == window[0].kind]
        if self._by_length:
            alike = self._of_like_length(alike)
        most = self._options.max_batch_length
        return alike[: self._options.batch_size] if most is None else self._within(alike, most)

    def _of_like_length(self, items: list[Item]) -> list[Item]:
        batches = plan_batches(
            [item.length for item in items],
            max_tokens=self._options.max_batch_tokens or 2**62,
            max_rows=self._options.batch_size,
        )
        with_first = next(rows for rows in batches if (rows == 0).any())
        return [items[row] for row in sorted(with_first)]

    def _within(self, items: list[Item], most: int) -> list[Item]:
        """Returns the first items, as many as are not too long together, at least one."""
        taken, length = 1, items[0].length
        for item in items[1 : self._options.batch_size]:
            length += item.length
            if length > most:
                break
            taken += 1
        return items[:taken]
