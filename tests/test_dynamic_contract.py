"""Code written for the package `batched`, with nothing but its import changed."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import numpy as np
import pytest

import sparkinfer.batching.dynamic as batched
from sparkinfer.batching.dynamic import aio, inference, types

COMMON: dict[str, Any] = {"batch_size": 32, "timeout_ms": 5.0, "small_batch_threshold": 8}
PADDING: dict[str, Any] = {"pad_tokens": {"a": 1}, "padding_side": "left", "spread_kwargs": False}
ASYNC: dict[str, Any] = {
    "max_batch_length": 100,
    "priority_strategy": types.PriorityStrategy.LENGTH,
    "cache": None,
    "batch_item_cls": aio.AsyncBatchItem[Any, Any],
}


def test_the_decorators_take_their_options_and_calls() -> None:
    @batched.dynamically
    def lengths(items: list[str]) -> list[int]:
        return [len(item) for item in items]

    @batched.dynamically(None, 64, 10.0, 4)
    def upper(items: list[str]) -> list[str]:
        return [item.upper() for item in items]

    @batched.inference.dynamically(**COMMON, **PADDING)
    def doubled(inputs: dict[str, Any]) -> Any:
        return inputs["a"] * 2

    assert lengths("hello") == 5
    assert lengths(["hello", "hi"]) == [5, 2]
    assert upper("a") == "A"
    assert doubled({"a": np.array([[1, 2]])}).tolist() == [[2, 4]]
    assert doubled(a=np.array([[1, 2]])).tolist() == [[2, 4]]

    async def main() -> None:
        assert await lengths.acall("hello") == 5
        assert await lengths.acall(["hello"]) == [5]
        assert await lengths.acall(item="hello") == 5
        assert (await doubled.acall(a=np.array([[1]]))).tolist() == [[2]]

    asyncio.run(main())
    for batcher in (lengths, upper, doubled):
        batcher.start()
        batcher.shutdown()


def test_the_decorators_of_aio_take_their_options_and_calls() -> None:
    @batched.aio.dynamically(**COMMON, **ASYNC)
    async def lengths(items: list[str]) -> list[int]:
        return [len(item) for item in items]

    @batched.aio.inference.dynamically(**COMMON, **PADDING, **ASYNC)
    def doubled(inputs: dict[str, Any]) -> list[Any]:
        return [inputs["a"] * 2, inputs["a"] * 3]

    async def main() -> None:
        assert await lengths("hello") == 5
        assert await lengths(["hello"] * 9) == [5] * 9
        two, three = await doubled({"a": np.array([[1, 2]])})
        assert (two.tolist(), three.tolist()) == ([[2, 4]], [[3, 6]])

    asyncio.run(main())
    assert lengths.stats.total_processed == 10
    lengths.clear_stats()
    assert lengths.stats.total_processed == 0


@pytest.mark.parametrize(
    ("make", "is_async"),
    [
        (lambda: batched.BatchProcessor(lambda items: items, 32, 5.0, 8), False),
        (lambda: batched.BatchProcessor(_func=lambda items: items, **COMMON), False),
        (lambda: aio.AsyncBatchProcessor(func=lambda items: items, **COMMON, **ASYNC), True),
    ],
)
def test_the_classes_are_constructed_and_called(make: Any, is_async: bool) -> None:
    processor = make()
    made = asyncio.run(processor(["a", "b"])) if is_async else processor(["a", "b"])
    assert made == ["a", "b"]
    stats = processor.stats
    assert isinstance(stats, types.BatchProcessorStats)
    assert (stats.queue_size, stats.total_processed, stats.total_batches) == (0, 2, 1)
    assert stats.avg_batch_size == 2.0
    assert stats.avg_processing_time > 0
    assert stats.cache_stats is None
    assert processor.small_batch_threshold == 8


def test_the_classes_for_models_are_constructed_and_called() -> None:
    def function(inputs: dict[str, Any]) -> Any:
        return inputs["a"].sum(1)

    plain = inference.ModelBatchProcessor(_func=function, **COMMON, **PADDING)
    coroutine = aio.inference.AsyncModelBatchProcessor(_func=function, **COMMON, **PADDING, **ASYNC)
    assert isinstance(plain, batched.BatchProcessor)
    assert isinstance(coroutine, aio.AsyncBatchProcessor)
    assert plain(a=np.ones((2, 3))).tolist() == [3, 3]
    assert asyncio.run(_awaited(coroutine(a=np.ones((2, 3))))).tolist() == [3, 3]


async def _awaited(call: Any) -> Any:
    return await call


def test_the_decorated_are_of_the_classes() -> None:
    made = batched.dynamically(lambda items: items)
    assert isinstance(made, batched.BatchProcessor)
    assert isinstance(aio.dynamically(lambda items: items), aio.AsyncBatchProcessor)


def test_the_types_have_their_members() -> None:
    assert [one.name for one in types.PriorityStrategy] == ["NONE", "LENGTH", "PRIORITY"]
    counted = types.CacheStats()
    counted.update_get(hit=True, time_taken=2.0)
    counted.update_set(time_taken=3.0)
    assert (counted.gets, counted.hits, counted.sets) == (1, 1, 1)
    assert (counted.avg_get_time, counted.avg_hit_time, counted.avg_set_time) == (2.0, 2.0, 3.0)
    fields = list(inspect.signature(types.BatchProcessorStats).parameters)
    assert fields[:6] == [
        *("queue_size", "total_processed", "total_batches"),
        *("avg_batch_size", "avg_processing_time", "cache_stats"),
    ]
    assert types.Feature is not None
