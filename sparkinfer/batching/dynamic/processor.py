"""Batches for callers in threads."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar, overload

from sparkinfer.batching.dynamic.base import Batcher, is_async, seconds_of
from sparkinfer.batching.dynamic.calls import AwaitedCall, BlockedCall, Call, PromisedCall
from sparkinfer.batching.dynamic.decorator import batched
from sparkinfer.batching.dynamic.options import BatchOptions
from sparkinfer.batching.dynamic.payloads import Lists, Payload
from sparkinfer.batching.dynamic.room import Room
from sparkinfer.batching.dynamic.types import BatchFunc, BatchProcessorStats, PriorityStrategy, T, U
from sparkinfer.exceptions import ConfigError

Self = TypeVar("Self", bound="BatchProcessor[Any, Any]")


class BatchProcessor(Batcher, Generic[T, U]):
    """Calls a function with the items of several callers at once, in threads of its own.

    The function runs in the context (`contextvars`) of the caller whose item is the first of the
    batch. Threads start with the first call, and end when the batcher is closed or collected.

    Args:
        _func: from a list of items to a list with one result for each, in order.
        batch_size: maximum items of a batch, at least 1.
        timeout_ms: fewer leave when the oldest has waited so long, or nothing new came for a tenth
            of it, as soon as a worker is free; in milliseconds, at least 0.
        small_batch_threshold: items of calls with up to so many are before those of larger ones.
        options: further ones, see `BatchOptions`.

    Raises:
        ConfigError: an option or the function cannot be used.
    """

    def __init__(
        self,
        _func: BatchFunc[T, U],
        batch_size: int = 32,
        timeout_ms: float = 5.0,
        small_batch_threshold: int = 8,
        **options: Any,
    ) -> None:
        made = BatchOptions(
            batch_size=batch_size,
            timeout_ms=timeout_ms,
            small_batch_threshold=small_batch_threshold,
            **options,
        )
        self._set_up(_func, made, Lists())

    def _set_up(
        self, function: Callable[..., Any], options: BatchOptions, payload: Payload
    ) -> None:
        Batcher.__init__(self, function, options, payload, PriorityStrategy.PRIORITY)
        if is_async(function):
            raise ConfigError(
                f"func={self._name}: expected a plain function, and it is a coroutine function; "
                "use that of aio"
            )
        self._room = Room(options, is_padded=payload.is_padded, name=self._name)
        # At the end of the interpreter, too.
        weakref.finalize(self, self._room.close)

    @property
    def stats(self) -> BatchProcessorStats:
        """Returns what was counted so far."""
        return self._tally.stats(self._room.count)

    @overload
    def __call__(self, items: list[T], *, timeout_s: float | None = None) -> list[U]: ...

    @overload
    def __call__(self, items: T, *, timeout_s: float | None = None) -> U: ...

    def __call__(self, items: T | list[T], *, timeout_s: float | None = None) -> U | list[U]:
        """Returns the result of an item, or those of a list of items in their order.

        Args:
            items: a list, or anything else: one item.
            timeout_s: how long to wait for them, in seconds; None: as long as it takes.

        Raises:
            Exception: what the function raised; of several items the error of the first.
            CallError: there is no result for another reason; see `sparkinfer.exceptions`.
        """
        if isinstance(items, list):
            return self._results(items, timeout_s)
        result: U = self._results([items], timeout_s)[0]
        return result

    def submit(self, item: T) -> Future[U]:
        """Returns what will hold the result of an item; cancelled, it waits no more.

        Raises:
            CallError: it is not taken; see `sparkinfer.exceptions`.
        """
        call = PromisedCall(self._items([item]), self._work)
        self._room.enter(call)
        call.future.add_done_callback(partial(self._let_go, call))
        return call.future

    def _let_go(self, call: Call, future: Future[U]) -> None:
        if future.cancelled():
            self._room.leave(call)

    @overload
    async def acall(self, item: list[T], *, timeout_s: float | None = None) -> list[U]: ...

    @overload
    async def acall(self, item: T, *, timeout_s: float | None = None) -> U: ...

    async def acall(self, item: T | list[T], *, timeout_s: float | None = None) -> U | list[U]:
        """Returns the same as a call, without keeping the event loop waiting."""
        if isinstance(item, list):
            return await self._within(self._awaited_results(item), timeout_s)
        result: U = (await self._within(self._awaited_results([item]), timeout_s))[0]
        return result

    def start(self) -> None:
        """Starts the threads now, or again after `close()`."""
        self._room.start()

    def close(self) -> None:
        """Ends calls that wait with BatcherClosedError; returns when running batches are done."""
        for thread in self._room.close():
            if thread is not threading.current_thread():
                thread.join()

    def shutdown(self) -> None:
        """Does the same as `close()`."""
        self.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _results(self, contents: list[Any], timeout_s: float | None) -> list[Any]:
        most_s = seconds_of(timeout_s)
        if not contents:
            return []
        call = BlockedCall(self._items(contents), self._work)
        self._room.enter(call)
        try:
            is_over = call.lock.acquire(timeout=-1 if most_s is None else most_s)
        except BaseException:  # Ctrl-C
            self._room.leave(call)
            raise
        if not is_over and self._room.leave(call):
            raise self._too_late(timeout_s)
        return call.results()

    async def _awaited_results(self, contents: list[Any]) -> list[Any]:
        if not contents:
            return []
        future = asyncio.get_running_loop().create_future()
        call = AwaitedCall(self._items(contents), self._work, future)
        self._room.enter(call)
        await call.arrival(self._room.leave)
        return call.results()


def dynamically(
    func: BatchFunc[T, U] | None = None,
    /,
    batch_size: int = 32,
    timeout_ms: float = 5.0,
    small_batch_threshold: int = 8,
    **options: Any,
) -> Any:
    """Returns a function that is called with one item or a list, and runs batches of several calls.

        @dynamically(batch_size=64)
        def lengths(texts: list[str]) -> list[int]:
            return [len(text) for text in texts]

        lengths("one")  # 3, together with whatever other threads ask for now
        lengths(["one", "three"])  # [3, 5]
        await lengths.acall("one")

    A method gets one batcher for each instance, collected with it.

    Args:
        func: from a list of items to a list of results; None: a decorator is returned.
        batch_size: see `BatchProcessor`, as for all others.
        timeout_ms: in milliseconds.
        small_batch_threshold: in items.
        options: further ones, see `BatchOptions`.

    Raises:
        ConfigError: an option or the function cannot be used.
    """

    def make(function: BatchFunc[T, U]) -> BatchProcessor[T, U]:
        return BatchProcessor(function, batch_size, timeout_ms, small_batch_threshold, **options)

    return batched(make, func)
