"""What a batcher counts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from sparkinfer.batching.dynamic.calls import Item
from sparkinfer.batching.dynamic.forks import reset_in_children
from sparkinfer.batching.dynamic.types import BatchProcessorStats, CacheStats

LATENCIES = 8192
"""Percentiles are of the last so many items."""


class Tally:
    """Adds up runs of the function and the times that items took.

    Args:
        batch_size: maximum items of a batch.
        knows_lengths: whether the lengths of items are those that are padded.
    """

    def __init__(self, batch_size: int, *, knows_lengths: bool) -> None:
        self._batch_size = batch_size
        self._knows_lengths = knows_lengths
        self.reset()
        reset_in_children(self)

    def reset(self) -> None:
        """Forgets what was counted."""
        self._lock = threading.Lock()
        self._items = self._runs = self._run_items = 0
        self._tokens = self._padded_tokens = 0
        self._seconds = 0.0
        self._latencies: deque[float] = deque(maxlen=LATENCIES)

    def add_run(self, items: Sequence[Item], seconds: float) -> None:
        """Counts one run of the function."""
        with self._lock:
            self._runs += 1
            self._run_items += len(items)
            self._seconds += seconds
            if self._knows_lengths:
                self._tokens += sum(item.length for item in items)
                self._padded_tokens += len(items) * max(item.length for item in items)

    def add_settled(self, items: Sequence[Item]) -> None:
        """Counts items that have an outcome now."""
        now = time.monotonic()
        with self._lock:
            self._items += len(items)
            self._latencies.extend([now - item.call.born for item in items])

    def stats(self, queue_size: int, cache_stats: CacheStats | None = None) -> BatchProcessorStats:
        """Returns what was counted so far."""
        with self._lock:
            latencies = sorted(self._latencies)
            runs = self._runs or 1
            return BatchProcessorStats(
                queue_size=queue_size,
                total_processed=self._items,
                total_batches=self._runs,
                avg_batch_size=self._run_items / runs,
                avg_processing_time=self._seconds / runs,
                cache_stats=cache_stats,
                latency_p50=_percentile(latencies, 50),
                latency_p95=_percentile(latencies, 95),
                latency_p99=_percentile(latencies, 99),
                batch_fill=self._run_items / runs / self._batch_size,
                padding_share=1 - self._tokens / (self._padded_tokens or self._tokens or 1)
                if self._tokens
                else 0.0,
            )


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """Returns the smallest value that so many percent do not exceed; 0 if there is none."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else 0.0
