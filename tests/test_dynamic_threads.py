"""Callers in threads that share batches."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkinfer import dynamically
from sparkinfer.batching.dynamic import BatchProcessor
from sparkinfer.exceptions import (
    BatcherClosedError,
    BatchOutputError,
    CallError,
    CallTimeoutError,
    ConfigError,
    QueueFullError,
)

FOR_EVER_S = 60.0
"""More than any of these takes; a test that hangs ends."""


class Held:
    """A function that doubles numbers, and waits in each batch until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.may_go = threading.Semaphore(0)

    def __call__(self, numbers: list[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.entered.release()
        assert self.may_go.acquire(timeout=FOR_EVER_S)
        return [2 * number for number in numbers]

    def wait(self) -> None:
        assert self.entered.acquire(timeout=FOR_EVER_S)


def until(holds: Callable[[], bool]) -> None:
    """Waits for what no event tells of: that a call waits in the queue."""
    deadline = time.monotonic() + FOR_EVER_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


def test_one_item_gives_one_result_and_a_list_gives_a_list() -> None:
    with BatchProcessor(double) as batcher:
        assert batcher(3) == 6
        assert batcher([3, 4]) == [6, 8]
        assert batcher([]) == []
        assert batcher(list(range(100))) == list(range(0, 200, 2))


def test_callers_share_a_batch_and_it_leaves_at_once_when_it_is_full() -> None:
    batches = []

    def function(numbers: list[int]) -> list[int]:
        batches.append(sorted(numbers))
        return double(numbers)

    with (
        ThreadPoolExecutor(4) as pool,
        BatchProcessor(function, batch_size=4, timeout_ms=FOR_EVER_S * 20_000) as batcher,
    ):
        calls = [pool.submit(batcher, number) for number in range(3)]
        until(lambda: batcher.stats.queue_size == 3)
        threading.Event().wait(0.05)  # the worker looks, and goes back to sleep
        calls.append(pool.submit(batcher, 3))
        assert [call.result(FOR_EVER_S) for call in calls] == [0, 2, 4, 6]
    assert batches == [[0, 1, 2, 3]]


def test_what_comes_while_the_function_is_busy_leaves_together() -> None:
    function = Held()
    with BatchProcessor(function) as batcher, ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher, 0)
        function.wait()
        others = [pool.submit(batcher, number) for number in range(1, 8)]
        until(lambda: batcher.stats.queue_size == 7)
        function.may_go.release(2)
        assert [call.result(FOR_EVER_S) for call in [first, *others]] == list(range(0, 16, 2))
    assert [len(batch) for batch in function.batches] == [1, 7]


def test_callers_in_two_groups_come_together_again() -> None:
    """Five threads call again and again; at first, one is worked on while the others wait."""
    function = Held()

    def call(number: int) -> list[int]:
        return [batcher(number) for _ in range(3)]

    with (
        BatchProcessor(function, batch_size=5, timeout_ms=2000) as batcher,
        ThreadPoolExecutor(5) as pool,
    ):
        calls = [pool.submit(call, 0)]
        function.wait()
        calls += [pool.submit(call, number) for number in range(1, 5)]
        until(lambda: batcher.stats.queue_size == 4)
        function.may_go.release(4)
        assert [one.result(FOR_EVER_S) for one in calls] == [[2 * n] * 3 for n in range(5)]
    assert [len(batch) for batch in function.batches] == [1, 5, 5, 4]


def test_an_idle_batcher_uses_no_cpu() -> None:
    with BatchProcessor(double, timeout_ms=1) as batcher:
        batcher(1)
        worker = next(one for one in threading.enumerate() if one.name == "batches of double")
        clock = time.pthread_getcpuclockid(worker.ident or 0)
        threading.Event().wait(0.05)  # it goes back to sleep
        before = time.clock_gettime(clock)
        threading.Event().wait(0.2)
        assert time.clock_gettime(clock) - before < 0.0002


def test_a_small_call_is_before_a_large_one_that_came_first() -> None:
    function = Held()
    with (
        BatchProcessor(function, batch_size=3, small_batch_threshold=1) as batcher,
        ThreadPoolExecutor(3) as pool,
    ):
        calls = [pool.submit(batcher, 0)]
        function.wait()
        calls.append(pool.submit(batcher, [1, 2, 3]))
        until(lambda: batcher.stats.queue_size == 3)
        calls.append(pool.submit(batcher, 4))
        until(lambda: batcher.stats.queue_size == 4)
        function.may_go.release(3)
        assert [call.result(FOR_EVER_S) for call in calls] == [0, [2, 4, 6], 8]
    assert function.batches == [[0], [4, 1, 2], [3]]


def test_an_error_is_raised_by_each_call_of_its_batch() -> None:
    def function(numbers: list[int]) -> list[int]:
        raise KeyError("no such number")

    with BatchProcessor(function) as batcher:
        for _ in range(2):
            with pytest.raises(KeyError, match="no such number"):
                batcher([1, 2])


@pytest.mark.parametrize(
    ("outputs", "found"), [([1], "1 results"), ([1, 2, 3], "3 results"), (None, "NoneType"),
                           ({1: 1, 2: 2}, "dict"), ("ab", "str")]
)  # fmt: skip
def test_outputs_that_are_not_one_for_each_item_are_an_error(outputs: Any, found: str) -> None:
    with (
        BatchProcessor(lambda numbers: outputs) as batcher,
        pytest.raises(BatchOutputError, match=f"returned {found} for a batch of 2 items"),
    ):
        batcher([1, 2])


def test_what_would_end_the_thread_is_an_error_of_the_call() -> None:
    def function(numbers: list[int]) -> list[int]:
        raise SystemExit(3)

    with BatchProcessor(function) as batcher:
        for _ in range(2):
            with pytest.raises(CallError, match="raised SystemExit"):
                batcher(1)


def test_bisection_leaves_the_bad_items_alone() -> None:
    runs = []

    def function(numbers: list[int]) -> list[int]:
        runs.append(len(numbers))
        if 13 in numbers:
            raise ValueError("13 is bad")
        return double(numbers)

    with (
        BatchProcessor(function, on_error="bisect", timeout_ms=100) as batcher,
        ThreadPoolExecutor(32) as pool,
    ):
        calls = [pool.submit(batcher, number) for number in range(32)]
        results = [call.exception(FOR_EVER_S) or call.result() for call in calls]
    assert isinstance(results.pop(13), ValueError)
    assert results == [2 * number for number in range(32) if number != 13]


def test_bisection_finds_items_that_the_function_leaves_out() -> None:
    with (
        BatchProcessor(
            lambda numbers: [n for n in numbers if n != 2], on_error="bisect"
        ) as batcher,
        ThreadPoolExecutor(4) as pool,
    ):
        calls = [pool.submit(batcher, number) for number in range(4)]
        errors = [call.exception(FOR_EVER_S) for call in calls]
        assert [call.result() for call in calls if not call.exception()] == [0, 1, 3]
    assert isinstance(errors[2], BatchOutputError)


def test_bisection_leaves_out_who_gave_up() -> None:
    batches = []
    may_fail = threading.Event()

    def function(numbers: list[int]) -> list[int]:
        batches.append(sorted(numbers))
        if 13 in numbers:
            assert may_fail.wait(FOR_EVER_S)
            raise ValueError("13 is bad")
        return double(numbers)

    with (
        BatchProcessor(function, batch_size=3, timeout_ms=FOR_EVER_S * 20_000, on_error="bisect")
        as batcher,
        ThreadPoolExecutor(3) as pool,
    ):  # fmt: skip
        calls = [pool.submit(batcher, 1, timeout_s=0.5)]
        calls += [pool.submit(batcher, number) for number in (13, 2)]
        assert isinstance(calls[0].exception(FOR_EVER_S), CallTimeoutError)
        may_fail.set()
        assert isinstance(calls[1].exception(FOR_EVER_S), ValueError)
        assert calls[2].result(FOR_EVER_S) == 4
    assert batches[0] == [1, 2, 13]
    assert sorted(batches[1:]) == [[2], [13]]


def test_a_call_that_waited_long_enough_gives_up_and_shifts_no_other() -> None:
    function = Held()
    with BatchProcessor(function) as batcher, ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher, 0)
        function.wait()
        with pytest.raises(CallTimeoutError, match="timeout_s=0.01"):
            batcher([100, 101], timeout_s=0.01)
        others = [pool.submit(batcher, number) for number in (1, 2)]
        until(lambda: batcher.stats.queue_size == 2)
        function.may_go.release(2)
        assert [call.result(FOR_EVER_S) for call in [first, *others]] == [0, 2, 4]
    assert sorted(function.batches[1]) == [1, 2]


def test_a_call_that_gives_up_while_its_batch_runs_shifts_no_other() -> None:
    function = Held()
    with BatchProcessor(function) as batcher, ThreadPoolExecutor(4) as pool:
        running = pool.submit(batcher, 7)
        function.wait()
        both = [pool.submit(batcher, 1, timeout_s=0.5), pool.submit(batcher, 2)]
        until(lambda: batcher.stats.queue_size == 2)
        function.may_go.release()
        function.wait()
        assert isinstance(both[0].exception(FOR_EVER_S), CallTimeoutError)
        function.may_go.release()
        assert [running.result(FOR_EVER_S), both[1].result(FOR_EVER_S)] == [14, 4]


def test_a_full_queue_refuses_or_lets_wait() -> None:
    function = Held()
    with (
        BatchProcessor(function, max_queue=1, when_full="refuse") as batcher,
        ThreadPoolExecutor(4) as pool,
    ):
        calls = [pool.submit(batcher, 0)]
        function.wait()
        calls.append(pool.submit(batcher, 1))
        until(lambda: batcher.stats.queue_size == 1)
        with pytest.raises(QueueFullError, match="max_queue is 1"):
            batcher(2)
        function.may_go.release(2)
        assert [call.result(FOR_EVER_S) for call in calls] == [0, 2]


def test_calls_that_wait_for_room_get_their_results() -> None:
    with (
        BatchProcessor(double, max_queue=2, batch_size=2) as batcher,
        ThreadPoolExecutor(16) as pool,
    ):
        assert list(pool.map(batcher, range(500))) == list(range(0, 1000, 2))


def test_closing_ends_what_waits_and_lets_the_running_batch_finish() -> None:
    function = Held()
    batcher: BatchProcessor[int, int] = BatchProcessor(function)
    with ThreadPoolExecutor(8) as pool:
        running = pool.submit(batcher, 0)
        function.wait()
        waiting = [pool.submit(batcher, number) for number in range(1, 5)]
        until(lambda: batcher.stats.queue_size == 4)
        closing = pool.submit(batcher.close)
        errors = [call.exception(FOR_EVER_S) for call in waiting]
        assert not running.done()
        function.may_go.release()
        closing.result(FOR_EVER_S)
        assert running.result(FOR_EVER_S) == 0
    assert {type(error) for error in errors} == {BatcherClosedError}
    with pytest.raises(BatcherClosedError, match="was closed"):
        batcher(1)
    batcher.start()
    function.may_go.release()
    assert batcher(4) == 8
    batcher.shutdown()


def test_several_workers_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=FOR_EVER_S)

    def function(numbers: list[int]) -> list[int]:
        both.wait()
        return double(numbers)

    with (
        BatchProcessor(function, batch_size=1, workers=2) as batcher,
        ThreadPoolExecutor(2) as pool,
    ):
        assert list(pool.map(batcher, range(8))) == list(range(0, 16, 2))


def test_the_function_runs_in_the_context_of_its_first_caller() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    def ask(name: str) -> str:
        user.set(name)
        result: str = batcher(0)
        return result

    with BatchProcessor(lambda numbers: [user.get()] * len(numbers)) as batcher:
        for name in ("ann", "bob"):
            assert contextvars.copy_context().run(ask, name) == name


def test_a_function_that_calls_itself_is_told_so() -> None:
    def function(numbers: list[int]) -> list[int]:
        return [batcher(number - 1) for number in numbers]

    with BatchProcessor(function) as batcher, pytest.raises(CallError, match="from within itself"):
        batcher(1)


def test_a_batcher_that_nobody_holds_takes_its_thread_with_it() -> None:
    batcher = BatchProcessor(double)
    batcher(1)
    worker = next(one for one in threading.enumerate() if one.name == "batches of double")
    gone = weakref.ref(batcher)
    del batcher
    gc.collect()
    worker.join(FOR_EVER_S)
    assert not worker.is_alive()
    assert gone() is None


def test_a_call_leaves_nothing_behind() -> None:
    class Content:
        pass

    with BatchProcessor(lambda items: [None] * len(items)) as batcher:
        content = Content()
        batcher(content)
        gone = weakref.ref(content)
        del content
        until(lambda: gone() is None)


def test_coroutines_can_call_it_and_be_cancelled() -> None:
    function = Held()

    async def main() -> list[int]:
        calls = [asyncio.ensure_future(batcher.acall(number)) for number in range(4)]
        await asyncio.to_thread(function.wait)
        late = [asyncio.ensure_future(batcher.acall(number)) for number in (10, 11)]
        await asyncio.sleep(0)
        calls[1].cancel()
        late[0].cancel()
        with pytest.raises(CallTimeoutError):
            await batcher.acall([20, 21], timeout_s=0.01)
        function.may_go.release(2)
        done = await asyncio.gather(*calls, *late, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in done].count(True) == 2
        return [one for one in done if isinstance(one, int)]

    with BatchProcessor(function, timeout_ms=500) as batcher:
        assert asyncio.run(main()) == [0, 4, 6, 22]
    assert function.batches == [[0, 1, 2, 3], [11]]


def test_stats_tell_what_was_done() -> None:
    with BatchProcessor(double, batch_size=4, max_batch_tokens=1000, length=abs) as batcher:
        assert batcher.stats.total_batches == 0
        batcher([10, 10, 10, 8])
        stats = batcher.stats
        assert (stats.queue_size, stats.total_processed, stats.total_batches) == (0, 4, 1)
        assert (stats.avg_batch_size, stats.batch_fill) == (4.0, 1.0)
        assert stats.padding_share == pytest.approx(2 / 40)
        assert 0 < stats.avg_processing_time < FOR_EVER_S
        assert 0 < stats.latency_p50 <= stats.latency_p95 <= stats.latency_p99 < FOR_EVER_S
        batcher.clear_stats()
        assert batcher.stats.total_processed == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected an integer of at least 1"),
        ({"timeout_ms": -1}, "timeout_ms=-1: expected a number of at least 0"),
        ({"timeout_ms": "5"}, "timeout_ms='5': expected a number"),
        ({"on_error": "skip"}, "on_error='skip': expected 'raise' or 'bisect'"),
        ({"workers": 0}, "workers=0: expected"),
        ({"length": 3}, "length=3: expected a function"),
        ({"batchsize": 3}, "did you mean 'batch_size'?"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dynamically(double, **options)
    assert message in str(refused.value)


def test_a_coroutine_function_is_refused() -> None:
    async def function(numbers: list[int]) -> list[int]:
        return numbers

    with pytest.raises(ConfigError, match="use that of aio"):
        dynamically(function)


def test_fifty_thousand_calls_from_64_threads_get_their_own_results() -> None:
    each = 50_000 // 64 + 1
    counts = [0] * 64

    def call(caller: int) -> None:
        for number in range(caller * each, (caller + 1) * each):
            counts[caller] += batcher(number) == 2 * number

    with BatchProcessor(double) as batcher, ThreadPoolExecutor(64) as pool:
        list(pool.map(call, range(64)))
        assert counts == [each] * 64
        assert batcher.stats.total_processed == 64 * each


made_calls = st.lists(
    st.tuples(
        st.lists(st.integers(0, 60), min_size=1, max_size=6),
        st.sampled_from([None, None, None, 0.0, 0.001]),
    ),
    max_size=24,
)


@settings(max_examples=40)
@given(
    made_calls,
    st.integers(1, 8),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(["raise", "bisect"]),
    st.integers(1, 3),
)
def test_a_call_has_its_own_results_or_an_error_whatever_others_do(
    calls: list[tuple[list[int], float | None]],
    batch_size: int,
    timeout_ms: float,
    on_error: str,
    workers: int,
) -> None:
    """Numbers above 55 fail; some calls give up at some moment."""

    def function(numbers: list[int]) -> list[int]:
        if max(numbers) > 55:
            raise ValueError("too large")
        return double(numbers)

    batcher: BatchProcessor[int, int] = BatchProcessor(
        function, batch_size, timeout_ms, on_error=on_error, workers=workers
    )
    with batcher, ThreadPoolExecutor(8) as pool:
        made = [pool.submit(batcher, numbers, timeout_s=limit) for numbers, limit in calls]
        for (numbers, limit), call in zip(calls, made, strict=True):
            error = call.exception(FOR_EVER_S)
            if error is None:
                assert call.result() == double(numbers)
                assert max(numbers) <= 55
            elif isinstance(error, CallTimeoutError):
                assert limit is not None
            else:
                assert isinstance(error, ValueError)
                assert on_error == "raise" or max(numbers) > 55


def test_a_generator_function_runs_in_the_context_of_its_first_caller() -> None:
    number = contextvars.ContextVar("number", default=0)

    @dynamically
    def numbers(items: list[int]) -> Any:
        for _ in items:
            yield number.get()

    number.set(7)
    assert numbers(1) == 7


def test_a_function_that_calls_itself_through_another_is_told_so() -> None:
    @dynamically
    def here(numbers: list[int]) -> list[int]:
        return [there(number, timeout_s=FOR_EVER_S) for number in numbers]

    @dynamically
    def there(numbers: list[int]) -> list[int]:
        return [here(number, timeout_s=FOR_EVER_S) for number in numbers]

    with pytest.raises(CallError, match="here was called from within itself"):
        here(1, timeout_s=FOR_EVER_S)


def test_a_callback_that_would_end_the_thread_ends_nobody_elses_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = Held()

    def leave(_: Any) -> None:
        raise SystemExit(3)

    with BatchProcessor(held) as batcher:
        promised = batcher.submit(1)
        promised.add_done_callback(leave)
        held.may_go.release(2)
        assert promised.result(FOR_EVER_S) == 2
        assert batcher(2, timeout_s=FOR_EVER_S) == 4
    assert "callback of a promised result failed" in caplog.text


def test_a_promise_of_a_function_that_stops_an_iteration_ends_in_a_coroutine() -> None:
    def stop(numbers: list[int]) -> list[int]:
        raise StopIteration

    async def ask(batcher: BatchProcessor[int, int]) -> None:
        with pytest.raises(CallError, match="raised StopIteration"):
            await asyncio.wait_for(asyncio.wrap_future(batcher.submit(1)), FOR_EVER_S)
        with pytest.raises(CallError, match="raised StopIteration"):
            await batcher.acall(1)

    with BatchProcessor(stop) as batcher:
        asyncio.run(ask(batcher))


@pytest.mark.parametrize("timeout_s", ["10", float("nan")])
def test_a_time_that_is_no_number_is_refused_before_anything_waits(timeout_s: Any) -> None:
    with BatchProcessor(double) as batcher:
        with pytest.raises(ConfigError, match=r"timeout_s=.*expected seconds"):
            batcher(1, timeout_s=timeout_s)
        with pytest.raises(ConfigError, match=r"timeout_s=.*expected seconds"):
            asyncio.run(batcher.acall(1, timeout_s=timeout_s))
        assert batcher.stats.total_processed == 0


def test_a_time_without_end_is_as_long_as_it_takes() -> None:
    with BatchProcessor(double) as batcher:
        assert batcher(1, timeout_s=float("inf")) == 2
        assert asyncio.run(batcher.acall(1, timeout_s=float("inf"))) == 2


@pytest.mark.parametrize("length", [None, "3", -1, float("nan"), float("inf"), 2**62])
def test_a_length_that_is_none_is_an_error_of_its_call_alone(length: Any) -> None:
    lengths = {1: 1.5, 2: length}
    options: dict[str, Any] = {"length": lengths.__getitem__, "max_batch_tokens": 10}
    with BatchProcessor(double, **options) as batcher:
        with pytest.raises(ConfigError, match=r"length=.* of the item 2: expected a number"):
            batcher([1, 2], timeout_s=FOR_EVER_S)
        assert batcher(1, timeout_s=FOR_EVER_S) == 2


def test_results_are_not_overwritten_by_the_next_batch() -> None:
    rows = np.zeros((4, 2))

    @dynamically
    def fill(numbers: list[int]) -> Any:
        rows[: len(numbers)] = np.array(numbers)[:, None]
        return rows[: len(numbers)]

    first, second = fill(1), fill(2)
    assert first.tolist() == [1, 1]
    assert second.tolist() == [2, 2]
    assert first.base is None  # who keeps it keeps nobody else's


def test_results_without_end_are_an_error() -> None:
    with (
        BatchProcessor(lambda numbers: itertools.repeat(1)) as batcher,  # type: ignore[arg-type,return-value]
        pytest.raises(BatchOutputError, match="returned at least 3 results for a batch of 2 items"),
    ):
        batcher([1, 2], timeout_s=FOR_EVER_S)


def test_a_table_is_no_list_of_results() -> None:
    class Table(list[str]):
        columns = ("a", "b")

    with (
        BatchProcessor(lambda numbers: Table(["a", "b"])) as batcher,
        pytest.raises(BatchOutputError, match="returned Table"),
    ):
        batcher([1, 2])
