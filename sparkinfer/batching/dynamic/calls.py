"""A call and its items: what waits, and how a result gets to the one who asked.

Whoever changes `left` holds the lock of the room that the call is in.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from sparkinfer.batching.dynamic.nesting import batches_around
from sparkinfer.exceptions import BatcherClosedError, CallError
from sparkinfer.logs import get_logger

if TYPE_CHECKING:
    from sparkinfer.batching.dynamic.work import Work


_log = get_logger(__name__)


class Failure(NamedTuple):
    """Why items have no result.

    Attributes:
        error: that is raised by their calls.
        trace: of where it came from; without it the one error would gather those of all callers.
    """

    error: Exception
    trace: TracebackType | None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Returns the failure that callers see: of what would end their thread, an error.

        No coroutine can raise StopIteration, and no future of asyncio hold it.
        """
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            return cls(error, error.__traceback__)
        ended = "loop" if isinstance(error, StopIteration) else "program"
        stopped = CallError(
            f"the function raised {type(error).__name__}({error}), which ends a {ended} and no "
            "call; raise another exception in its place"
        )
        stopped.__cause__ = error
        return cls(stopped, None)

    def throw(self) -> None:
        """Raises the error."""
        try:
            raise self.error.with_traceback(self.trace)
        finally:
            del self  # which the trace would hold, and the other way round


class Item:
    """One item of a call.

    Attributes:
        call: that it is of.
        priority: lower ones leave first.
        length: in tokens, or whatever is counted.
        kind: only items of one kind share a batch.
        born: when it came into the queue, in seconds of a monotonic clock.
        result: what the function returned for it.
        failure: why there is none.
    """

    __slots__ = ("born", "call", "content", "failure", "kind", "length", "priority", "result")
    call: Call

    def __init__(
        self, content: Any, priority: int = 0, length: int = 1, kind: Hashable = None
    ) -> None:
        self.content = content
        self.priority = priority
        self.length = length
        self.kind = kind
        self.born = 0.0
        self.result: Any = None
        self.failure: Failure | None = None


class Call:
    """Items that one caller waits for.

    Attributes:
        left: items without an outcome; 0 once the call is over, whyever.
        failure: of the call as a whole.
        born: when it was made, in seconds of `time.monotonic`.
        context: of the caller.
        within: batches under way of whose function the caller is a part.
        work: that is done with the items.
    """

    __slots__ = ("born", "context", "failure", "items", "left", "within", "work")

    def __init__(self, items: list[Item], work: Work) -> None:
        self.items = items
        self.work = work
        self.left = len(items)
        self.failure: Failure | None = None
        self.born = time.monotonic()
        self.context = copy_context()
        self.within = batches_around()
        for item in items:
            item.call = self

    @property
    def is_within_itself(self) -> bool:
        """Returns whether a batch that is under way would wait for another of the same work."""
        return any(batch.work is self.work for batch in self.within if batch.is_running)

    def results(self) -> list[Any]:
        """Returns the results, and releases the items.

        Raises:
            Exception: the call failed, or its first item without a result did.
        """
        items, self.items = self.items, []  # each knows the other: nothing would be freed
        failure = self.failure or next((one.failure for one in items if one.failure), None)
        if failure is not None:
            del items  # which the error's trace would hold
            failure.throw()
        return [item.result for item in items]


class BlockedCall(Call):
    """A call for which a thread waits.

    Attributes:
        lock: held until the call is over.
    """

    __slots__ = ("lock",)

    def __init__(self, items: list[Item], work: Work) -> None:
        super().__init__(items, work)
        self.lock = threading.Lock()
        self.lock.acquire()


class AwaitedCall(Call):
    """A call for which a coroutine waits.

    Attributes:
        future: of its loop; done once the call is over.
    """

    __slots__ = ("future",)

    def __init__(self, items: list[Item], work: Work, future: asyncio.Future[None]) -> None:
        super().__init__(items, work)
        self.future = future

    async def arrival(self, leave: Callable[[Call], bool]) -> None:
        """Waits until the call is over; one that is cancelled leaves."""
        try:
            await self.future
        except BaseException:
            leave(self)
            raise


class PromisedCall(Call):
    """A call with one item, for which nobody waits yet.

    Attributes:
        future: done once the call is over; cancelled, it leaves.
    """

    __slots__ = ("future",)

    def __init__(self, items: list[Item], work: Work) -> None:
        super().__init__(items, work)
        self.future: Future[Any] = Future()

    def keep(self) -> None:
        """Gives the result, or why there is none, to whoever asks for it."""
        try:
            if self.future.set_running_or_notify_cancel():
                self._tell()
        except KeyboardInterrupt:
            raise
        except BaseException:  # by a listener: others wait for what comes after
            _log.exception("a callback of a promised result failed")

    def _tell(self) -> None:
        try:
            [result] = self.results()
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


def count_down(items: Sequence[Item]) -> list[Call]:
    """Returns the calls that are over now that the items have their outcomes."""
    over = []
    for item in items:
        call = item.call
        if call.left:
            call.left -= 1
            if not call.left:
                over.append(call)
    return over


def fail(calls: Sequence[Call], error: Exception) -> None:
    """Ends calls with an error, whatever becomes of items that are under way."""
    for call in calls:
        call.left, call.failure = 0, Failure(error, None)


def hand_over(calls: Iterable[Call]) -> None:
    """Wakes those who wait for calls that are over; each loop once."""
    awaited: dict[asyncio.AbstractEventLoop, list[AwaitedCall]] = {}
    for call in calls:
        if isinstance(call, BlockedCall):
            call.lock.release()
        elif isinstance(call, PromisedCall):
            call.keep()
        elif isinstance(call, AwaitedCall):
            awaited.setdefault(call.future.get_loop(), []).append(call)
    for loop, those in awaited.items():
        try:
            loop.call_soon_threadsafe(wake, those)
        except RuntimeError:
            continue  # the loop was closed: nobody waits there


def wake(calls: Iterable[Call]) -> None:
    """Wakes coroutines of the running loop."""
    for call in calls:
        if isinstance(call, AwaitedCall) and not call.future.done():
            call.future.set_result(None)


def was_closed(name: str) -> BatcherClosedError:
    """Returns the error of calls of a batcher that was closed."""
    return BatcherClosedError(
        f"{name} was closed: what waits gets no result and no call is taken; start it again, or "
        "make another"
    )


def called_itself(name: str) -> CallError:
    """Returns the error of a batched function that calls itself."""
    return CallError(
        f"{name} was called from within itself, and would wait for its own end; call the function "
        "that it was made of"
    )
