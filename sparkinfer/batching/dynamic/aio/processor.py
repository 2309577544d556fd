"""Batches for callers in coroutines."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, Generic, TypeVar, get_origin, overload

from sparkinfer.batching.dynamic.aio.batch_item import AsyncBatchItem, pass_through
from sparkinfer.batching.dynamic.aio.loop_room import LoopRoom
from sparkinfer.batching.dynamic.aio.stored import StoredResults
from sparkinfer.batching.dynamic.base import Batcher, checked_length, is_async
from sparkinfer.batching.dynamic.calls import AwaitedCall, Item, was_closed
from sparkinfer.batching.dynamic.decorator import batched
from sparkinfer.batching.dynamic.forks import reset_in_children
from sparkinfer.batching.dynamic.options import BatchOptions
from sparkinfer.batching.dynamic.payloads import Lists, Payload
from sparkinfer.batching.dynamic.types import (
    AsyncCache,
    BatchFunc,
    BatchProcessorStats,
    PriorityStrategy,
    T,
    U,
)
from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown

_NEEDS = ("get", "set")
"""What is called of a cache."""

Self = TypeVar("Self", bound="AsyncBatchProcessor[Any, Any]")


class AsyncBatchProcessor(Batcher, Generic[T, U]):
    """Calls a function with the items of several coroutines at once.

    A coroutine function runs in the callers' loop, a plain one in a thread of the loop's executor;
    both in the context (`contextvars`) of the caller whose item is the first of the batch. Each
    loop has its own batches.

    Args:
        func: from a list of items to a list with one result for each, in order.
        batch_size: maximum items of a batch, at least 1.
        timeout_ms: fewer leave when the oldest has waited so long, or nothing new came for a tenth
            of it, as soon as a worker is free; in milliseconds, at least 0.
        small_batch_threshold: items of calls with up to so many are before those of larger ones,
            unless the strategy is `NONE`.
        cache: keeps results by item; a result of None is not found again.
        priority_strategy: which items leave first.
        batch_item_cls: a subclass of `AsyncBatchItem` that changes priorities, lengths or results.
        options: further ones, see `BatchOptions`.

    Raises:
        ConfigError: an option or the function cannot be used.
    """

    def __init__(
        self,
        func: BatchFunc[T, U],
        *,
        batch_size: int = 32,
        timeout_ms: float = 5.0,
        small_batch_threshold: int = 8,
        cache: AsyncCache[Any, Any] | None = None,
        priority_strategy: PriorityStrategy = PriorityStrategy.NONE,
        batch_item_cls: Any = AsyncBatchItem,
        **options: Any,
    ) -> None:
        made = BatchOptions(
            batch_size=batch_size,
            timeout_ms=timeout_ms,
            small_batch_threshold=small_batch_threshold,
            **options,
        )
        self._set_up(func, made, Lists(), priority_strategy)
        self._store_in(cache, batch_item_cls)

    def _set_up(
        self,
        function: Callable[..., Any],
        options: BatchOptions,
        payload: Payload,
        strategy: PriorityStrategy,
    ) -> None:
        Batcher.__init__(self, function, options, payload, strategy)
        self._run = self._work.run_async if is_async(function) else self._work.run_in_thread
        self._is_closed = False
        self.reset()
        reset_in_children(self)

    def _store_in(self, cache: AsyncCache[Any, Any] | None, batch_item_cls: Any) -> None:
        if cache is not None and not all(callable(getattr(cache, name, None)) for name in _NEEDS):
            raise ConfigError(
                f"cache={shown(cache)}: expected an object with the coroutines get(key) and "
                "set(key, value), see types.AsyncCache"
            )
        self.batch_item_cls = batch_item_cls
        is_own = (get_origin(batch_item_cls) or batch_item_cls) is not AsyncBatchItem
        self._make_item: Any = batch_item_cls if is_own else None
        self._stored = None if cache is None else StoredResults(cache)

    def reset(self) -> None:
        """Forgets the loops, as a forked child must."""
        self._rooms: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopRoom]
        self._rooms = weakref.WeakKeyDictionary()

    @property
    def stats(self) -> BatchProcessorStats:
        """Returns what was counted so far."""
        waiting = sum(room.count for room in self._known_rooms())
        return self._tally.stats(waiting, self._stored.cache.stats() if self._stored else None)

    @overload
    async def __call__(self, items: list[T], *, timeout_s: float | None = None) -> list[U]: ...

    @overload
    async def __call__(self, items: T, *, timeout_s: float | None = None) -> U: ...

    async def __call__(self, items: T | list[T], *, timeout_s: float | None = None) -> U | list[U]:
        """Returns the result of an item, or those of a list of items in their order.

        Args:
            items: a list, or anything else: one item.
            timeout_s: how long to wait for them, in seconds; None: as long as it takes.

        Raises:
            Exception: what the function raised; of several items the error of the first.
            CallError: there is no result for another reason; see `sparkinfer.exceptions`.
        """
        if isinstance(items, list):
            return await self._within(self._results(items), timeout_s)
        result: U = (await self._within(self._results([items]), timeout_s))[0]
        return result

    def start(self) -> None:
        """Takes calls again after `close()`."""
        self._is_closed = False

    def close(self) -> None:
        """Ends calls that wait with BatcherClosedError; batches that are under way go on."""
        self._is_closed = True
        rooms = self._known_rooms()
        self.reset()  # what comes after start() has rooms of its own
        for room in rooms:
            try:
                room.loop.call_soon_threadsafe(room.close)
            except RuntimeError:
                continue  # the loop was closed: nobody waits there

    def shutdown(self) -> None:
        """Does the same as `close()`."""
        self.close()

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _results(self, contents: list[Any]) -> list[Any]:
        if not contents:
            return []
        if self._stored is None:
            return await self._new_results(contents)
        return await self._stored.results(contents, self._new_results)

    async def _new_results(self, contents: list[Any]) -> list[Any]:
        if self._is_closed:
            raise was_closed(self._name)
        room = self._room_of(asyncio.get_running_loop())
        items, made = self._items(contents), []
        if self._make_item is not None:
            made = [self._made_of(item, room.loop) for item in items]
        call = AwaitedCall(items, self._work, room.loop.create_future())
        room.enter(call)
        await call.arrival(room.leave)
        if made:
            pass_through(made, call)
        return call.results()

    def _made_of(self, item: Item, loop: asyncio.AbstractEventLoop) -> AsyncBatchItem[Any, Any]:
        """Returns the user's item, whose say is taken over."""
        made: AsyncBatchItem[Any, Any] = self._make_item(
            content=item.content, priority=item.priority, future=loop.create_future()
        )
        item.content = made.content
        item.kind = self._payload.kind(made.content)
        if self.priority_strategy is not PriorityStrategy.NONE:
            item.priority = _checked_priority(made)
        if self._needs_lengths:
            item.length = checked_length(len(made), made.content)
        return made

    def _known_rooms(self) -> list[LoopRoom]:
        """Returns the rooms of all loops; other loops' threads may add some meanwhile."""
        rooms = self._rooms
        loops = [loop for one in rooms.keyrefs() if (loop := one()) is not None]
        return [room for loop in loops if (room := rooms.get(loop)) is not None]

    def _room_of(self, loop: asyncio.AbstractEventLoop) -> LoopRoom:
        room = self._rooms.get(loop)
        if room is None:
            for old in [old for old in self._known_rooms() if old.loop.is_closed()]:
                self._rooms.pop(old.loop, None)
            is_padded = self._payload.is_padded
            room = LoopRoom(loop, self._run, self._options, is_padded=is_padded, name=self._name)
            self._rooms[loop] = room
        return room


def _checked_priority(made: AsyncBatchItem[Any, Any]) -> int:
    """Returns the priority of a user's item, which others can be compared with."""
    priority: Any = made.priority
    if not isinstance(priority, Real) or math.isnan(priority):
        raise ConfigError(
            f"priority={shown(priority)} of {type(made).__name__}: expected a number, lower ones "
            "leave first"
        )
    return made.priority


def dynamically(
    func: BatchFunc[T, U] | None = None,
    /,
    *,
    batch_size: int = 32,
    timeout_ms: float = 5.0,
    small_batch_threshold: int = 8,
    **options: Any,
) -> Any:
    """Returns a coroutine function that is called with one item or a list, and runs batches.

        @aio.dynamically(batch_size=64)
        async def lengths(texts: list[str]) -> list[int]:
            return [len(text) for text in texts]

        await lengths("one")  # 3, together with whatever other coroutines ask for now
        await lengths(["one", "three"])  # [3, 5]

    Args:
        func: from a list of items to a list of results, a coroutine function or a plain one; None:
            a decorator is returned.
        batch_size: see `AsyncBatchProcessor`, as for all others.
        timeout_ms: in milliseconds.
        small_batch_threshold: in items.
        options: `cache`, `priority_strategy`, `batch_item_cls`, and those of `BatchOptions`.

    Raises:
        ConfigError: an option or the function cannot be used.
    """
    options |= {"batch_size": batch_size, "timeout_ms": timeout_ms}
    make = partial(AsyncBatchProcessor, small_batch_threshold=small_batch_threshold, **options)
    return batched(make, func)
