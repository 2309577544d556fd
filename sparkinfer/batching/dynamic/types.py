"""What users of batched functions name: features, priorities, statistics, caches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
U = TypeVar("U")
Key = TypeVar("Key", contravariant=True)
Value = TypeVar("Value")

Feature = Any
"""A numpy array or a torch tensor whose first axis is the items, or a list of one for each item."""

BatchFunc = Callable[[list[T]], list[U] | Awaitable[list[U]]]
"""A function from the items of a batch to one result for each, in their order."""

BatchInfer = Callable[..., Any]
"""A function from a dict of arrays, or keyword arguments, to arrays with the same first axis."""


class PriorityStrategy(int, Enum):
    """Which items leave first where more wait than fit in a batch.

    In all but `NONE`, items of calls with up to `small_batch_threshold` items are before the
    others, and every fourth batch is of those that have waited longest, so that none waits forever.

    Attributes:
        NONE: those that came first.
        LENGTH: of the other calls, longer items before shorter ones.
        PRIORITY: of the other calls, those that came first.
    """

    NONE = auto()
    LENGTH = auto()
    PRIORITY = auto()


@dataclass
class CacheStats:
    """What a cache counts of itself; times in seconds."""

    gets: int = 0
    hits: int = 0
    sets: int = 0
    total_get_time: float = 0.0
    total_hit_time: float = 0.0
    total_set_time: float = 0.0

    @property
    def avg_get_time(self) -> float:
        """Returns the mean seconds of a look-up."""
        return self.total_get_time / self.gets if self.gets else 0.0

    @property
    def avg_hit_time(self) -> float:
        """Returns the mean seconds of a look-up that found something."""
        return self.total_hit_time / self.hits if self.hits else 0.0

    @property
    def avg_set_time(self) -> float:
        """Returns the mean seconds of keeping a result."""
        return self.total_set_time / self.sets if self.sets else 0.0

    def update_get(self, *, hit: bool, time_taken: float) -> None:
        """Counts one look-up that took so many seconds."""
        self.gets += 1
        self.total_get_time += time_taken
        if hit:
            self.hits += 1
            self.total_hit_time += time_taken

    def update_set(self, *, time_taken: float) -> None:
        """Counts one result that it took so many seconds to keep."""
        self.sets += 1
        self.total_set_time += time_taken


@dataclass
class BatchProcessorStats:
    """What a batcher has done since it was made, or since `clear_stats()`.

    Attributes:
        queue_size: items that wait now.
        total_processed: items that have a result or an error.
        total_batches: how often the function ran.
        avg_batch_size: items of a run.
        avg_processing_time: seconds of a run.
        cache_stats: what the cache counts; None without one.
        latency_p50: seconds from a call to the result of its item, median of the last 8192 items.
        latency_p95: the same, of which 5 % took longer.
        latency_p99: the same, of which 1 % took longer.
        batch_fill: items of a run as a share of `batch_size`, 0 to 1.
        padding_share: padding as a share of all tokens, 0 to 1; 0 where lengths are not known.
    """

    queue_size: int = 0
    total_processed: int = 0
    total_batches: int = 0
    avg_batch_size: float = 0.0
    avg_processing_time: float = 0.0
    cache_stats: CacheStats | None = None
    latency_p50: float = 0.0
    latency_p95: float = 0.0
    latency_p99: float = 0.0
    batch_fill: float = 0.0
    padding_share: float = 0.0


@runtime_checkable
class AsyncCache(Protocol[Key, Value]):
    """Keeps results by item; of any kind, as long as it has these four."""

    async def get(self, key: Key) -> Value | None:
        """Returns the result of an item, None if it is not there."""

    async def set(self, key: Key, value: Value) -> None:
        """Keeps the result of an item."""

    async def clear(self) -> None:
        """Forgets all results."""

    def stats(self) -> CacheStats:
        """Returns what was counted."""
