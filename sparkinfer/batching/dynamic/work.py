"""Runs the function over a batch: every item gets a result or an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sparkinfer.batching.dynamic.calls import Failure, Item
from sparkinfer.batching.dynamic.nesting import Batch, batch_of
from sparkinfer.batching.dynamic.options import BatchOptions
from sparkinfer.batching.dynamic.payloads import Payload
from sparkinfer.batching.dynamic.tally import Tally

Settle = Callable[[Sequence[Item]], None]
"""Receives items that have their outcome."""

Outcome = list[Any] | Failure


class Work:
    """A function, and what is known of its input and output.

    Args:
        function: from the payload's inputs to its outputs.
        payload: how items become inputs.
        options: of the batcher.
        tally: what is counted.
    """

    def __init__(
        self, function: Callable[..., Any], payload: Payload, options: BatchOptions, tally: Tally
    ) -> None:
        self.function = function
        self._payload = payload
        self._bisects = options.on_error == "bisect"
        self._tally = tally

    def run(self, items: Sequence[Item], settle: Settle) -> None:
        """Runs the function in this thread, in the context of the first item's caller."""
        started = time.monotonic()
        outcome = self._attempt(items)
        for part in self._rest(items, outcome, started, settle):
            self.run(part, settle)

    async def run_async(self, items: Sequence[Item], settle: Settle) -> None:
        """Awaits the coroutine function, in the context of the task."""
        await self._run_by(self._attempt_async, items, settle)

    async def run_in_thread(self, items: Sequence[Item], settle: Settle) -> None:
        """Runs the function in a thread of the loop's executor, and awaits its end."""

        async def attempt(items: Sequence[Item]) -> Outcome:
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(None, self._attempt, items)
            except Exception as error:  # the executor takes no more work
                return Failure.of(error)

        await self._run_by(attempt, items, settle)

    async def _run_by(
        self, attempt: Callable[[Sequence[Item]], Any], items: Sequence[Item], settle: Settle
    ) -> None:
        started = time.monotonic()
        outcome = await attempt(items)
        for part in self._rest(items, outcome, started, settle):
            await self._run_by(attempt, part, settle)

    def _attempt(self, items: Sequence[Item]) -> Outcome:
        context = items[0].call.context.copy()  # one can be entered once at a time
        try:
            return context.run(self._results, items)
        except BaseException as error:
            return Failure.of(error)

    def _results(self, items: Sequence[Item]) -> list[Any]:
        with batch_of(self, _around(items)):
            inputs = self._payload.inputs([item.content for item in items])
            outputs = self._payload.call(self.function, inputs)
            return self._payload.results(outputs, len(items))

    async def _attempt_async(self, items: Sequence[Item]) -> Outcome:
        try:
            with batch_of(self, _around(items)):
                inputs = self._payload.inputs([item.content for item in items])
                outputs = await self._payload.call(self.function, inputs)
                return self._payload.results(outputs, len(items))
        except (Exception, SystemExit) as error:
            return Failure.of(error)

    def _rest(
        self, items: Sequence[Item], outcome: Outcome, started: float, settle: Settle
    ) -> list[Sequence[Item]]:
        """Returns the parts that are to be run; without any, the items have their outcome."""
        self._tally.add_run(items, time.monotonic() - started)
        if not isinstance(outcome, Failure):
            for item, result in zip(items, outcome, strict=True):
                item.result = result
        elif self._bisects and len(items) > 1:
            return _halves([item for item in items if item.call.left])
        else:
            for item in items:
                item.failure = outcome
        self._tally.add_settled(items)
        settle(items)
        return []


def _around(items: Sequence[Item]) -> Iterator[Batch]:
    """Yields what the callers of the items are a part of."""
    for item in items:
        yield from item.call.within


def _halves(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Returns the two halves, without one that is empty."""
    middle = (len(items) + 1) // 2
    return [half for half in (items[:middle], items[middle:]) if half]
