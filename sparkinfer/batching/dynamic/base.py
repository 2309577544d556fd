"""What the batchers for threads and for coroutines have in common."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine
from numbers import Real
from typing import Any, TypeVar

from sparkinfer.batching.dynamic.calls import Item
from sparkinfer.batching.dynamic.options import BatchOptions
from sparkinfer.batching.dynamic.payloads import Payload, length_of
from sparkinfer.batching.dynamic.tally import Tally
from sparkinfer.batching.dynamic.types import PriorityStrategy
from sparkinfer.batching.dynamic.work import Work
from sparkinfer.exceptions import CallTimeoutError, ConfigError
from sparkinfer.messages import shown

R = TypeVar("R")

FIRST = -(2**62)
"""Priority of small calls where that of others is their length, negative."""


MOST_LENGTH = 2**40
"""Of an item; sums of lengths stay below what an int64 holds."""


def seconds_of(timeout_s: Any) -> float | None:
    """Returns how long to wait, as locks and loops take it; None: as long as it takes.

    Raises:
        ConfigError: it is no number.
    """
    if timeout_s is None:
        return None
    if not isinstance(timeout_s, Real) or math.isnan(timeout_s):
        raise ConfigError(
            f"timeout_s={shown(timeout_s)}: expected seconds, or None to wait as long as it takes"
        )
    return min(max(float(timeout_s), 0.0), threading.TIMEOUT_MAX)


def checked_length(length: Any, content: Any) -> int:
    """Returns the length of an item, a part of one as a whole.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(length, Real) and 0 <= float(length) <= MOST_LENGTH:
        return math.ceil(float(length))
    raise ConfigError(
        f"length={shown(length)} of the item {shown(content)}: expected a number from 0 to 2**40; "
        "change what the option 'length' returns"
    )


def is_async(function: Any) -> bool:
    """Returns whether a call of the function gives something to await."""
    call = getattr(function, "__call__", None)  # noqa: B004 - of an instance, its class's method
    return asyncio.iscoroutinefunction(function) or asyncio.iscoroutinefunction(call)


class Batcher:
    """A function, its options and what was counted; makes the items of calls.

    Args:
        function: of a batch.
        options: when a batch leaves.
        payload: how items become its input.
        strategy: which items leave first.

    Raises:
        ConfigError: the function cannot be called.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: BatchOptions,
        payload: Payload,
        strategy: PriorityStrategy,
    ) -> None:
        if not callable(function):
            raise ConfigError(f"func={shown(function)}: expected a function of a batch")
        if strategy not in list(PriorityStrategy):
            known = ", ".join(f"PriorityStrategy.{one.name}" for one in PriorityStrategy)
            raise ConfigError(f"priority_strategy={shown(strategy)}: expected one of {known}")
        self.batch_func = function
        self.small_batch_threshold = options.small_batch_threshold
        self.priority_strategy = strategy
        self._name: str = getattr(function, "__qualname__", type(function).__qualname__)
        self._options = options
        self._payload = payload
        self._measure: Any = options.length or length_of
        is_padded = payload.is_padded or options.max_batch_tokens is not None
        self._needs_lengths = is_padded or options.max_batch_length is not None
        self._tally = Tally(options.batch_size, knows_lengths=is_padded)
        self._work = Work(function, payload, options, self._tally)

    def clear_stats(self) -> None:
        """Counts from zero again."""
        self._tally.reset()

    def _items(self, contents: list[Any]) -> list[Item]:
        """Returns the items of a call, in their order."""
        is_small = len(contents) <= self._options.small_batch_threshold
        if self.priority_strategy is PriorityStrategy.NONE:
            priority = 0
        elif self.priority_strategy is PriorityStrategy.LENGTH and not is_small:
            return [self._item(content, -self._length(content)) for content in contents]
        elif self.priority_strategy is PriorityStrategy.LENGTH:
            priority = FIRST
        else:
            priority = 0 if is_small else 1
        if self._needs_lengths:
            return [self._item(content, priority) for content in contents]
        return [Item(content, priority) for content in contents]

    def _item(self, content: Any, priority: int) -> Item:
        length = self._length(content) if self._needs_lengths else 1
        return Item(content, priority, length, self._payload.kind(content))

    def _length(self, content: Any) -> int:
        return checked_length(self._measure(content), content)

    def _too_late(self, timeout_s: float | None) -> CallTimeoutError:
        return CallTimeoutError(
            f"timeout_s={timeout_s}: {self._name} gave no result within it; give the call more "
            "time, or the batcher more workers"
        )

    async def _within(self, results: Coroutine[Any, Any, R], timeout_s: float | None) -> R:
        """Returns what a coroutine returns.

        Raises:
            ConfigError: the time is no number.
            CallTimeoutError: it did not within the time, and was cancelled.
        """
        try:
            most_s = seconds_of(timeout_s)
        except ConfigError:
            results.close()
            raise
        if most_s is None:
            return await results
        task = asyncio.ensure_future(results)
        try:
            await asyncio.wait([task], timeout=most_s)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        await asyncio.wait([task])
        raise self._too_late(timeout_s)
