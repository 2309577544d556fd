"""Batches of dicts of arrays for callers in threads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from sparkinfer.batching.dynamic.decorator import batched
from sparkinfer.batching.dynamic.features import Features, joined, rows_of
from sparkinfer.batching.dynamic.options import ModelOptions
from sparkinfer.batching.dynamic.processor import BatchProcessor
from sparkinfer.batching.dynamic.types import BatchInfer, Feature

__all__ = ["ModelBatchProcessor", "dynamically"]


class ModelBatchProcessor(BatchProcessor[dict[str, Feature], Feature]):
    """Calls a function with the padded arrays of several callers at once, in threads of its own.

    Items of like length, and only such whose features have the same names, dtypes and ranks, share
    a batch.

    Args:
        _func: from a dict of arrays, whose first axis is the items, to an array with the same first
            axis, or a dict or list of such.
        batch_size: see `BatchProcessor`, as for the next two.
        timeout_ms: in milliseconds.
        small_batch_threshold: in items.
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
        self._set_up(_func, made, Features(made))

    def __call__(  # type: ignore[override]
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
        return joined(self._results(rows, timeout_s))

    async def acall(  # type: ignore[override]
        self,
        features: dict[str, Feature] | None = None,
        /,
        *,
        timeout_s: float | None = None,
        **by_name: Feature,
    ) -> Feature:
        """Returns the same as a call, without keeping the event loop waiting."""
        rows = rows_of(features, by_name)
        return joined(await self._within(self._awaited_results(rows), timeout_s))


def dynamically(
    func: BatchInfer | None = None,
    /,
    *,
    batch_size: int = 32,
    timeout_ms: float = 5.0,
    small_batch_threshold: int = 8,
    **options: Any,
) -> Any:
    """Returns a function of a dict of arrays that runs padded batches of several calls.

        @inference.dynamically(pad_tokens={"input_ids": 0})
        def logits(features: dict[str, np.ndarray]) -> np.ndarray:
            return model(features["input_ids"], features["attention_mask"])

        logits({"input_ids": ids, "attention_mask": mask})  # arrays (items, length)
        logits(input_ids=ids, attention_mask=mask)
        await logits.acall(input_ids=ids, attention_mask=mask)

    Args:
        func: of a batch; None: a decorator is returned.
        batch_size: see `ModelBatchProcessor`, as for all others.
        timeout_ms: in milliseconds.
        small_batch_threshold: in items.
        options: `pad_tokens`, `padding_side`, `spread_kwargs`, and those of `BatchOptions`.

    Raises:
        ConfigError: an option or the function cannot be used.
    """
    options |= {"batch_size": batch_size, "timeout_ms": timeout_ms}
    make = partial(ModelBatchProcessor, small_batch_threshold=small_batch_threshold, **options)
    return batched(make, func)
