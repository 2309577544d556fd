"""Batches for callers in coroutines."""

from sparkinfer.batching.dynamic.aio import inference
from sparkinfer.batching.dynamic.aio.batch_item import AsyncBatchItem
from sparkinfer.batching.dynamic.aio.processor import AsyncBatchProcessor, dynamically

__all__ = ["AsyncBatchItem", "AsyncBatchProcessor", "dynamically", "inference"]
