"""Batches of dicts of arrays for callers in coroutines."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from sparkinfer.batching.dynamic.aio.batch_item import AsyncBatchItem
from sparkinfer.batching.dynamic.aio.processor import AsyncBatchProcessor
from sparkinfer.batching.dynamic.decorator import batched
from sparkinfer.batching.dynamic.features import Features, joined, rows_of
from sparkinfer.batching.dynamic.options import ModelOptions
from sparkinfer.batching.dynamic.types import AsyncCache, BatchInfer, Feature, PriorityStrategy

__all__ = ["AsyncModelBatchProcessor", "dynamically"]


class AsyncModelBatchProcessor(AsyncBatchProcessor[dict[str, Feature], Feature]):
    """Calls a function with the padded arrays of several coroutines at once.

    Items of like length, and only such whose features have the same names, dtypes and ranks, share
    a batch.

    Args:
        _func: from a dict of arrays, whose first axis is the items, to an array with the same first
            axis, or a dict or list of such; a coroutine function or a plain one.
        batch_size: see `AsyncBatchProcessor`, as for the next five.
        timeout_ms: in milliseconds.
        small_batch_threshold: in items.
        cache: is asked for single items, dicts of arrays without the first axis.
        priority_strategy: which items leave first.
        batch_item_cls: a subclass of `AsyncBatchItem`.
        pad_tokens: what each feature is padded with; 0 where it is not named.
        padding_side: `right` or `left`.
        spread_kwargs: whether the function takes the features as keyword arguments.
        options: further ones, see `BatchOptions`.

    Raises:
        ConfigError: an option or the function cannot be used.
    """

    def __init__(
        self,
        _func: BatchInfer,
        *,
        batch_size: int = 32,
        timeout_ms: float = 5.0,
        small_batch_threshold: int = 8,
        cache: AsyncCache[Any, Any] | None = None,
        priority_strategy: PriorityStrategy = PriorityStrategy.NONE,
        batch_item_cls: Any = AsyncBatchItem,
        pad_tokens: Mapping[str, Any] | None = None,
        padding_side: Literal["right", "left"] = "right",
        spread_kwargs: bool = False,
        **options: Any,
    ) -> None:
        made = ModelOptions(
            batch_size=batch_size,
            timeout_ms=timeout_ms,
            small_batch_threshold=small_batch_threshold,
            pad_tokens=pad_tokens or {},
            padding_side=padding_side,
            spread_kwargs=spread_kwargs,
            **options,
        )
        self._set_up(_func, made, Features(made), priority_strategy)
        self._store_in(cache, batch_item_cls)

    async def __call__(  # type: ignore[override]
        self,
        features: dict[str, Feature] | None = None,
        /,
        *,
        timeout_s: float | None = None,
        **by_name: Feature,
    ) -> Feature:
        """Returns the function's outputs for the items of the features, in their order.

        Args:
            features: by name; or give them as keyword arguments.
            timeout_s: how long to wait, in seconds; None: as long as it takes.
            by_name: the features.

        Raises:
            InputError: the features do not have the same number of items.
            Exception: what the function raised, of several batches the first.
            CallError: there is no result for another reason; see `sparkinfer.exceptions`.
        """
        rows = rows_of(features, by_name)
        return joined(await self._within(self._results(rows), timeout_s))


def dynamically(
    func: BatchInfer | None = None,
    /,
    *,
    batch_size: int = 32,
    timeout_ms: float = 5.0,
    small_batch_threshold: int = 8,
    **options: Any,
) -> Any:
    """Returns a coroutine function of a dict of arrays that runs padded batches of several calls.

        @aio.inference.dynamically(pad_tokens={"input_ids": 0})
        def logits(features: dict[str, np.ndarray]) -> np.ndarray:
            return model(features["input_ids"], features["attention_mask"])

        await logits({"input_ids": ids, "attention_mask": mask})  # arrays (items, length)
        await logits(input_ids=ids, attention_mask=mask)

    Args:
        func: of a batch, a coroutine function or a plain one; None: a decorator is returned.
        batch_size: see `AsyncModelBatchProcessor`, as for all others.
        timeout_ms: in milliseconds.
        small_batch_threshold: in items.
        options: `pad_tokens`, `padding_side`, `spread_kwargs`, `cache`, `priority_strategy`,
            `batch_item_cls`, and those of `BatchOptions`.

    Raises:
        ConfigError: an option or the function cannot be used.
    """
    options |= {"batch_size": batch_size, "timeout_ms": timeout_ms}
    make = partial(AsyncModelBatchProcessor, small_batch_threshold=small_batch_threshold, **options)
    return batched(make, func)
