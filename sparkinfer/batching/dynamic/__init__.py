"""Dynamic batching: callers that come one by one share a batch.

    from sparkinfer.batching.dynamic import aio, dynamically, inference

Four decorators: `dynamically` and `inference.dynamically` for threads, `aio.dynamically` and
`aio.inference.dynamically` for coroutines. Independent of the rest: neither Spark nor torch is
loaded.
"""

from sparkinfer.batching.dynamic import aio, inference, types
from sparkinfer.batching.dynamic.processor import BatchProcessor, dynamically

__all__ = ["BatchProcessor", "aio", "dynamically", "inference", "types"]
