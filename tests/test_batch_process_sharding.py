"""Every batch is one rank's, and all ranks meet as often."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.batch_process.sharding import (
    batch_at,
    count_batches,
    count_steps,
    next_checkpoint,
    rows_of,
    shard,
)

ROWS, SIZES, RANKS = st.integers(0, 300), st.integers(1, 20), st.integers(1, 9)


@given(ROWS, SIZES, RANKS)
def test_every_row_is_in_one_batch_of_one_rank(rows: int, batch_size: int, ranks: int) -> None:
    steps = range(count_steps(rows, batch_size, ranks))
    found = [
        row
        for rank in range(ranks)
        for batch in shard(rank=rank, ranks=ranks, rows=rows, batch_size=batch_size, steps=steps)
        for row in batch
    ]
    assert sorted(found) == list(range(rows))


@given(ROWS, SIZES, RANKS, st.data())
def test_batch_i_is_for_rank_i_mod_n(
    rows: int, batch_size: int, ranks: int, data: st.DataObject
) -> None:
    count = count_batches(rows, batch_size)
    if count:
        batch = data.draw(st.integers(0, count - 1))
        assert batch_at(batch // ranks, batch % ranks, ranks) == batch
        assert rows_of(batch, batch_size, rows)


@given(ROWS, SIZES, RANKS)
def test_all_ranks_take_as_many_steps_as_the_contract_says(
    rows: int, batch_size: int, ranks: int
) -> None:
    assert count_steps(rows, batch_size, ranks) == math.ceil(rows / batch_size / ranks)


@given(ROWS, SIZES, RANKS, st.data())
def test_a_shard_from_a_step_on_is_the_rest_of_the_whole_one(
    rows: int, batch_size: int, ranks: int, data: st.DataObject
) -> None:
    steps = count_steps(rows, batch_size, ranks)
    first = data.draw(st.integers(0, steps))
    rank = data.draw(st.integers(0, ranks - 1))
    of_rank = {"rank": rank, "ranks": ranks, "rows": rows, "batch_size": batch_size}
    whole = [*shard(**of_rank, steps=range(steps))]
    assert [*shard(**of_rank, steps=range(first, steps))] == whole[first:]


def test_a_short_batch_may_be_dropped() -> None:
    assert count_batches(10, 4) == 3
    assert count_batches(10, 4, drop_last=True) == 2
    kept = [*shard(rank=0, ranks=1, rows=10, batch_size=4, steps=range(3), drop_last=True)]
    assert kept == [range(4), range(4, 8)]


@given(st.lists(st.integers(0, 40), min_size=1), st.integers(1, 12))
def test_ranks_meet_at_the_next_multiple_of_the_interval_for_the_one_that_is_least_far(
    done: list[int], interval: int
) -> None:
    steps = max(done) + 1
    meeting = next_checkpoint(done, interval, steps)
    assert min(done) < meeting <= steps
    assert meeting == steps or (meeting % interval == 0 and meeting - min(done) <= interval)


@given(st.lists(st.integers(0, 40), min_size=1), st.integers(1, 12), st.integers(41, 60))
def test_ranks_that_paused_at_unlike_steps_end_together(
    done: list[int], interval: int, steps: int
) -> None:
    meetings = 0
    while min(done) < steps:
        target = next_checkpoint(done, interval, steps)
        done = [max(one, target) for one in done]
        meetings += 1
    assert done == [steps] * len(done)
    assert meetings <= steps // interval + 2
