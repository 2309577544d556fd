"""What users subclass to have a say in the order of items, or to see their results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic

from sparkinfer.batching.dynamic.calls import Call
from sparkinfer.batching.dynamic.payloads import length_of
from sparkinfer.batching.dynamic.types import T, U


@dataclass(order=True)
class AsyncBatchItem(Generic[T, U]):
    """One item of a call.

    Attributes:
        content: what the function is given; a subclass may change it.
        future: of its result.
        priority: lower ones leave first; a subclass may change it.
    """

    content: T = field(compare=False)
    future: asyncio.Future[U] = field(compare=False)
    priority: int = field(default=1, compare=True)

    def set_result(self, result: U) -> None:
        """Gives the item its result."""
        with suppress(asyncio.InvalidStateError):
            self.future.set_result(result)

    def set_exception(self, exception: Exception) -> None:
        """Gives the item an error."""
        with suppress(asyncio.InvalidStateError):
            self.future.set_exception(exception)

    def done(self) -> bool:
        """Returns whether the item has a result or an error."""
        return self.future.done()

    def __len__(self) -> int:
        """Returns the length of the content; 1 of what has none."""
        return length_of(self.content)


def pass_through(made: Sequence[AsyncBatchItem[Any, Any]], call: Call) -> None:
    """Lets a subclass see what became of its items of a call, and change results."""
    for one, item in zip(made, call.items, strict=True):
        failure = call.failure or item.failure
        if failure is not None:
            one.set_exception(failure.error)
            if one.done():
                one.future.exception()  # was seen: asyncio would tell of it otherwise
        else:
            one.set_result(item.result)
            if one.done():
                item.result = one.future.result()
