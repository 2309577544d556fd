"""Which rank gets which batch, and when the ranks meet: pure functions over integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def count_batches(rows: int, batch_size: int, drop_last: bool = False) -> int:
    """Returns how many batches a dataset has; the last one may be short, or be dropped."""
    return rows // batch_size if drop_last else -(-rows // batch_size)


def count_steps(rows: int, batch_size: int, ranks: int) -> int:
    """Returns the steps that every rank takes: those with the most batches have one in each."""
    return -(-count_batches(rows, batch_size) // ranks)


def batch_at(step: int, rank: int, ranks: int) -> int:
    """Returns the number of the batch that a rank has in a step; there may be no such batch."""
    return step * ranks + rank


def rows_of(batch: int, batch_size: int, rows: int) -> range:
    """Returns the rows of a batch."""
    return range(batch * batch_size, min((batch + 1) * batch_size, rows))


def shard(
    *, rank: int, ranks: int, rows: int, batch_size: int, steps: range, drop_last: bool = False
) -> Iterator[range]:
    """Yields the rows of each batch that a rank has in some steps."""
    batches = count_batches(rows, batch_size, drop_last)
    for step in steps:
        batch = batch_at(step, rank, ranks)
        if batch < batches:
            yield rows_of(batch, batch_size, rows)


def next_checkpoint(done: Sequence[int], interval: int, steps: int) -> int:
    """Returns after how many steps the ranks meet next.

    It follows from what all of them have committed: ranks that have paused after unlike numbers of
    steps still agree on it. One that is beyond it takes no step before it.

    Args:
        done: steps that each rank has committed.
        interval: steps from one checkpoint to the next.
        steps: that each rank takes in all.
    """
    return min((min(done) // interval + 1) * interval, steps)
