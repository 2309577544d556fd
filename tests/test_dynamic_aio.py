"""Callers in coroutines that share batches."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkinfer.batching.dynamic import aio
from sparkinfer.batching.dynamic.aio import AsyncBatchItem, AsyncBatchProcessor
from sparkinfer.batching.dynamic.types import CacheStats, PriorityStrategy
from sparkinfer.exceptions import (
    BatcherClosedError,
    BatchOutputError,
    CallError,
    CallTimeoutError,
    ConfigError,
    QueueFullError,
)

FOR_EVER_S = 60.0
LONG_MS = FOR_EVER_S * 20_000


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, FOR_EVER_S))


async def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


class Held:
    """A coroutine function that waits in each batch until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.entered = asyncio.Semaphore(0)
        self.may_go = asyncio.Semaphore(0)

    async def __call__(self, numbers: list[Any]) -> list[Any]:
        self.batches.append(list(numbers))
        self.entered.release()
        await self.may_go.acquire()
        return [2 * number for number in numbers]


def test_one_item_gives_one_result_and_a_list_gives_a_list() -> None:
    def plain(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    async def main() -> None:
        for function in (double, plain):
            batcher: AsyncBatchProcessor[int, int] = AsyncBatchProcessor(function)
            assert await batcher(3) == 6
            assert await batcher([3, 4]) == [6, 8]
            assert await batcher([]) == []
            assert await batcher(list(range(100))) == list(range(0, 200, 2))

    run(main())


def test_a_full_batch_leaves_at_once() -> None:
    batches = []

    async def function(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        return numbers

    async def main() -> None:
        batcher: Any = AsyncBatchProcessor(function, batch_size=4, timeout_ms=LONG_MS)
        assert await asyncio.gather(*map(batcher, range(8))) == list(range(8))

    run(main())
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_batcher_serves_one_loop_after_another() -> None:
    batcher: Any = AsyncBatchProcessor(double)
    assert [run(batcher(number)) for number in range(3)] == [0, 2, 4]


def test_a_cancelled_call_shifts_no_other() -> None:
    async def main() -> None:
        function = Held()
        batcher: Any = AsyncBatchProcessor(function, timeout_ms=500)
        running = [asyncio.ensure_future(batcher(number)) for number in range(4)]
        await function.entered.acquire()
        waiting = [asyncio.ensure_future(batcher(number)) for number in range(4, 8)]
        await asyncio.sleep(0)
        running[0].cancel()
        waiting[1].cancel()
        await asyncio.sleep(0)
        function.may_go.release()
        function.may_go.release()
        results = await asyncio.gather(*running[1:], waiting[0], *waiting[2:])
        assert results == [2, 4, 6, 8, 12, 14]
        assert function.batches == [[0, 1, 2, 3], [4, 6, 7]]

    run(main())


def test_a_call_that_waited_long_enough_gives_up() -> None:
    async def main() -> None:
        function = Held()
        batcher: Any = AsyncBatchProcessor(function)
        running = asyncio.ensure_future(batcher(0))
        await function.entered.acquire()
        with pytest.raises(CallTimeoutError, match=r"timeout_s=0.01: Held gave no result"):
            await batcher([1, 2], timeout_s=0.01)
        assert batcher.stats.queue_size == 0
        function.may_go.release()
        assert await running == 0

    run(main())


def test_a_time_out_of_the_function_is_its_own_error() -> None:
    async def function(numbers: list[int]) -> list[int]:
        raise asyncio.TimeoutError("the service")

    async def main() -> None:
        batcher: Any = AsyncBatchProcessor(function)
        with pytest.raises(asyncio.TimeoutError, match="the service") as raised:
            await batcher(1, timeout_s=FOR_EVER_S)
        assert not isinstance(raised.value, CallTimeoutError)

    run(main())


def test_errors_reach_their_calls() -> None:
    async def short(numbers: list[int]) -> list[int]:
        return numbers[1:]

    async def ends(numbers: list[int]) -> list[int]:
        raise SystemExit(3)

    async def stops(numbers: list[int]) -> list[int]:
        raise asyncio.CancelledError

    async def main() -> None:
        for function, error in ((short, BatchOutputError), (ends, CallError), (stops, CallError)):
            batcher: Any = AsyncBatchProcessor(function)
            for _ in range(2):
                with pytest.raises(error):
                    await batcher([1, 2])

    run(main())


def test_bisection_leaves_the_bad_items_alone() -> None:
    async def function(numbers: list[int]) -> list[int]:
        if 13 in numbers:
            raise ValueError("13 is bad")
        return await double(numbers)

    async def main() -> None:
        batcher: Any = AsyncBatchProcessor(function, on_error="bisect")
        results = await asyncio.gather(*map(batcher, range(32)), return_exceptions=True)
        assert isinstance(results.pop(13), ValueError)
        assert results == [2 * number for number in range(32) if number != 13]

    run(main())


def test_a_function_that_calls_itself_is_told_so() -> None:
    async def function(numbers: list[int]) -> list[int]:
        return [await batcher(number - 1) for number in numbers]

    batcher: Any = AsyncBatchProcessor(function)
    with pytest.raises(CallError, match="from within itself"):
        run(batcher(1))


def test_a_full_queue_refuses_or_lets_wait() -> None:
    async def main() -> None:
        function = Held()
        batcher: Any = AsyncBatchProcessor(function, max_queue=1, when_full="refuse")
        running = asyncio.ensure_future(batcher(0))
        await function.entered.acquire()
        waiting = asyncio.ensure_future(batcher(1))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher(2)
        function.may_go.release()
        function.may_go.release()
        assert await asyncio.gather(running, waiting) == [0, 2]
        patient: Any = AsyncBatchProcessor(double, max_queue=2, batch_size=2)
        assert await asyncio.gather(*map(patient, range(100))) == list(range(0, 200, 2))

    run(main())


def test_closing_ends_what_waits_and_lets_the_running_batch_finish() -> None:
    async def main() -> None:
        function = Held()
        async with AsyncBatchProcessor(function) as opened:
            batcher: Any = opened
            running = asyncio.ensure_future(batcher(1))
            await function.entered.acquire()
            waiting = asyncio.ensure_future(batcher(2))
            await asyncio.sleep(0)
        with pytest.raises(BatcherClosedError):
            await waiting
        with pytest.raises(BatcherClosedError, match="was closed"):
            await batcher(3)
        function.may_go.release()
        assert await running == 2
        batcher.start()
        function.may_go.release()
        assert await batcher(4) == 8

    run(main())


def test_the_end_of_the_loop_ends_its_calls() -> None:
    ended = []

    async def call(batcher: Any, number: int) -> None:
        try:
            await batcher(number)
        finally:
            ended.append(number)

    async def main() -> None:
        function = Held()
        batcher: Any = AsyncBatchProcessor(function, batch_size=1)
        calls.extend(asyncio.ensure_future(call(batcher, number)) for number in range(3))
        await function.entered.acquire()

    calls: list[asyncio.Future[None]] = []
    asyncio.run(main())
    assert sorted(ended) == [0, 1, 2]
    assert all(one.cancelled() for one in calls)


def test_a_batch_that_is_cancelled_before_it_began_ends_its_calls() -> None:
    async def main() -> None:
        batcher: Any = AsyncBatchProcessor(double, batch_size=1)
        before = asyncio.all_tasks()
        call = asyncio.ensure_future(batcher(1))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - before - {call}:
            task.cancel()
        with pytest.raises(CallError, match="was cancelled"):
            await call
        assert await batcher(2) == 4

    run(main())


@pytest.mark.parametrize("is_plain", [True, False])
def test_the_function_runs_in_the_context_of_its_first_caller(is_plain: bool) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    def plain(numbers: list[int]) -> list[str]:
        return [user.get()] * len(numbers)

    async def coroutine(numbers: list[int]) -> list[str]:
        return plain(numbers)

    async def main() -> None:
        batcher: Any = AsyncBatchProcessor(plain if is_plain else coroutine)
        for name in ("ann", "bob"):
            user.set(name)
            assert await batcher(0) == name

    run(main())


async def order_of(batcher: Any, function: Held, calls: list[Any]) -> list[Any]:
    """Returns the items in the order in which they leave, after those of a first batch."""
    first = asyncio.ensure_future(batcher("first"))
    await function.entered.acquire()
    made = [asyncio.ensure_future(batcher(call)) for call in calls]
    await asyncio.sleep(0)
    for _ in range(20):
        function.may_go.release()
    await asyncio.gather(first, *made)
    return [item for batch in function.batches[1:] for item in batch]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (PriorityStrategy.NONE, ["b", "cccc", "aa", "d"]),
        (PriorityStrategy.PRIORITY, ["d", "b", "cccc", "aa"]),
        (PriorityStrategy.LENGTH, ["d", "cccc", "aa", "b"]),
    ],
)
def test_strategies_say_which_items_leave_first(
    strategy: PriorityStrategy, expected: list[str]
) -> None:
    async def main() -> list[Any]:
        function = Held()
        batcher = AsyncBatchProcessor(
            function, batch_size=2, small_batch_threshold=1, priority_strategy=strategy
        )
        return await order_of(batcher, function, [["b", "cccc", "aa"], "d"])

    assert run(main()) == expected


@dataclass(order=True)
class Urgent(AsyncBatchItem[str, str]):
    def __post_init__(self) -> None:
        self.priority = 0 if "!" in self.content else 5

    def set_result(self, result: str) -> None:
        super().set_result(result.upper())


def test_an_item_class_of_the_user_sets_priorities_and_sees_results() -> None:
    async def main() -> None:
        function = Held()
        batcher: Any = AsyncBatchProcessor(
            function,
            batch_size=1,
            priority_strategy=PriorityStrategy.PRIORITY,
            batch_item_cls=Urgent,
        )
        assert await order_of(batcher, function, ["b", "c!"]) == ["c!", "b"]
        function.may_go.release()
        assert await batcher("x") == "XX"

    run(main())


def test_an_item_class_of_the_user_sees_errors() -> None:
    seen = []

    class Watched(AsyncBatchItem[int, int]):
        def set_exception(self, exception: Exception) -> None:
            seen.append(str(exception))
            super().set_exception(exception)

    async def function(numbers: list[int]) -> list[int]:
        raise ValueError("bad")

    async def main() -> None:
        batcher: Any = AsyncBatchProcessor(function, batch_item_cls=Watched)
        with pytest.raises(ValueError, match="bad"):
            await batcher([1, 2])

    run(main())
    assert seen == ["bad", "bad"]


def test_a_batch_keeps_within_max_batch_length() -> None:
    async def main() -> list[Any]:
        function = Held()
        batcher = AsyncBatchProcessor(function, max_batch_length=5, timeout_ms=500)
        await order_of(batcher, function, ["aaa", "bb", "c", "dddddddd", "e"])
        return function.batches[1:]

    assert run(main()) == [["aaa", "bb"], ["c"], ["dddddddd"], ["e"]]


class DictCache:
    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}
        self.counted = CacheStats()
        self.is_broken = False

    async def get(self, key: Any) -> Any:
        if self.is_broken:
            raise OSError("no cache")
        self.counted.update_get(hit=key in self.kept, time_taken=0.5)
        return self.kept.get(key)

    async def set(self, key: Any, value: Any) -> None:
        if self.is_broken:
            raise OSError("no cache")
        self.counted.update_set(time_taken=0.25)
        self.kept[key] = value

    async def clear(self) -> None:
        self.kept.clear()

    def stats(self) -> CacheStats:
        return self.counted


def test_results_are_kept_in_a_cache(caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    async def function(numbers: list[int]) -> list[int]:
        asked.append(numbers)
        return await double(numbers)

    async def main() -> None:
        cache = DictCache()
        batcher: Any = aio.dynamically(function, cache=cache)
        assert await batcher([1, 2]) == [2, 4]
        await asyncio.sleep(0)
        assert cache.kept == {1: 2, 2: 4}
        assert await batcher([3, 2, 1]) == [6, 4, 2]
        await asyncio.sleep(0)
        assert asked == [[1, 2], [3]]
        stats = batcher.stats.cache_stats
        assert (stats.gets, stats.hits, stats.sets, stats.avg_get_time) == (5, 2, 3, 0.5)
        cache.is_broken = True
        assert await batcher([1, 2]) == [2, 4]
        await asyncio.sleep(0)

    run(main())
    assert "a cache failed to look up an item: OSError: no cache" in caplog.text
    assert "a cache failed to keep a result: OSError: no cache" in caplog.text


def test_several_batches_are_under_way_with_several_workers() -> None:
    async def main() -> None:
        function = Held()
        batcher: Any = AsyncBatchProcessor(function, batch_size=1, workers=2)
        calls = [asyncio.ensure_future(batcher(number)) for number in range(3)]
        await function.entered.acquire()
        await function.entered.acquire()
        assert function.batches == [[0], [1]]
        for _ in range(3):
            function.may_go.release()
        assert await asyncio.gather(*calls) == [0, 2, 4]

    run(main())


def test_fifty_thousand_calls_from_a_thousand_tasks_get_their_own_results() -> None:
    async def call(batcher: Any, caller: int) -> int:
        numbers = range(caller * 50, (caller + 1) * 50)
        return sum([await batcher(number) == 2 * number for number in numbers])

    async def main() -> None:
        batcher: Any = AsyncBatchProcessor(double)
        counts = await asyncio.gather(*(call(batcher, caller) for caller in range(1000)))
        assert counts == [50] * 1000
        assert batcher.stats.total_processed == 50_000

    run(main())


made_calls = st.lists(
    st.tuples(
        st.lists(st.integers(0, 60), min_size=1, max_size=6),
        st.sampled_from([None, None, "cancel", "time out"]),
        st.integers(0, 3),
    ),
    max_size=24,
)


@settings(max_examples=60)
@given(made_calls, st.integers(1, 8), st.sampled_from(["raise", "bisect"]), st.integers(1, 3))
def test_a_call_has_its_own_results_or_an_error_whatever_others_do(
    calls: list[tuple[list[int], str | None, int]], batch_size: int, on_error: str, workers: int
) -> None:
    """Numbers above 55 fail; some calls are cancelled or give up after some steps of the loop."""

    async def function(numbers: list[int]) -> list[int]:
        await asyncio.sleep(0)
        if max(numbers) > 55:
            raise ValueError("too large")
        return await double(numbers)

    async def call(batcher: Any, numbers: list[int], fate: str | None, steps: int) -> Any:
        for _ in range(steps):
            await asyncio.sleep(0)
        task = asyncio.ensure_future(batcher(numbers, timeout_s=0 if fate == "time out" else None))
        for _ in range(steps):
            await asyncio.sleep(0)
        if fate == "cancel":
            task.cancel()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    async def main() -> list[Any]:
        batcher = AsyncBatchProcessor(
            function, batch_size=batch_size, timeout_ms=0.1, on_error=on_error, workers=workers
        )
        return await asyncio.gather(*(call(batcher, *one) for one in calls))

    for (numbers, fate, _), result in zip(calls, run(main()), strict=True):
        if isinstance(result, list):
            assert result == [2 * number for number in numbers]
            assert max(numbers) <= 55
        elif isinstance(result, ValueError):
            assert on_error == "raise" or max(numbers) > 55
        else:
            expected = {"cancel": asyncio.CancelledError, "time out": CallTimeoutError}
            assert fate is not None
            assert isinstance(result, expected[fate])


def test_a_function_that_calls_itself_in_another_task_is_told_so() -> None:
    @aio.dynamically
    async def nested(numbers: list[int]) -> list[int]:
        return list(await asyncio.gather(*map(nested, numbers)))

    with pytest.raises(CallError, match="called from within itself"):
        run(nested(1))


def test_it_takes_calls_at_once_when_it_is_opened_again() -> None:
    batcher = AsyncBatchProcessor(double)

    async def main() -> None:
        assert await batcher(1) == 2
        batcher.close()
        batcher.start()
        assert await batcher(2) == 4

    run(main())


def test_an_item_class_of_the_user_sees_that_the_batcher_was_closed() -> None:
    seen: list[Any] = []

    class Seen(AsyncBatchItem[int, int]):
        def set_result(self, result: int) -> None:
            seen.append(result)

        def set_exception(self, exception: Exception) -> None:
            seen.append(type(exception))

    batcher = AsyncBatchProcessor(double, batch_item_cls=Seen, timeout_ms=LONG_MS)

    async def main() -> None:
        call = asyncio.ensure_future(batcher(1))
        while not batcher.stats.queue_size:
            await asyncio.sleep(0)
        batcher.close()
        with pytest.raises(BatcherClosedError):
            await call

    run(main())
    assert seen == [BatcherClosedError]


def test_what_ends_the_task_of_a_batch_is_an_error_of_its_calls() -> None:
    async def stop(numbers: list[int]) -> list[int]:
        raise GeneratorExit

    with pytest.raises(CallError, match="raised GeneratorExit"):
        run(AsyncBatchProcessor(stop)(1))


@pytest.mark.parametrize("priority", ["high", None, (1, 2), [1], float("nan")])
def test_a_priority_that_cannot_be_compared_is_an_error_of_its_call_alone(priority: Any) -> None:
    @dataclass(order=True)
    class Own(AsyncBatchItem[int, int]):
        def __post_init__(self) -> None:
            self.priority = priority if self.content == 1 else self.content

    batcher = AsyncBatchProcessor(
        double, batch_item_cls=Own, priority_strategy=PriorityStrategy.PRIORITY
    )

    async def main() -> list[Any]:
        return await asyncio.gather(*map(batcher, range(3)), return_exceptions=True)

    first, error, last = run(main())
    assert (first, last) == (0, 4)
    assert str(error) == f"priority={priority!r} of Own: expected a number, lower ones leave first"


def test_a_cache_keeps_results_as_they_were_before_their_caller_changed_them() -> None:
    class Copies:
        def __init__(self) -> None:
            self.kept: dict[int, tuple[int, ...]] = {}

        async def get(self, key: int) -> list[int] | None:
            return list(self.kept[key]) if key in self.kept else None

        async def set(self, key: int, value: list[int]) -> None:
            self.kept[key] = tuple(value)

    batcher = AsyncBatchProcessor(lambda numbers: [[number] for number in numbers], cache=Copies())

    async def main() -> None:
        result = await batcher(1)
        result.append(99)
        assert await batcher(1) == [1]

    run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": {}}, r"cache={}: expected an object with the coroutines get\(key\)"),
        ({"priority_strategy": "LENGTH"}, "'LENGTH': expected one of PriorityStrategy.NONE"),
    ],
)
def test_a_cache_and_a_strategy_that_are_none_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AsyncBatchProcessor(double, **options)
