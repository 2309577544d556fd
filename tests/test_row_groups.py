from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.batching.row_groups import cut_row_groups, deal_out, growing_limits

lengths = st.lists(st.integers(0, 600), max_size=200)


@given(lengths, st.integers(1, 2000), st.integers(1, 50))
def test_every_row_is_in_exactly_one_row_group(sizes: list[int], limit: int, max_rows: int) -> None:
    groups = cut_row_groups(sizes, itertools.repeat(limit), max_rows=max_rows)
    assert sorted(np.concatenate([[], *groups]).tolist()) == list(range(len(sizes)))
    for group in groups:
        assert 1 <= len(group) <= max_rows
        assert len(group) == 1 or sum(sizes[row] for row in group) <= limit


@given(lengths)
def test_row_groups_hold_rows_of_like_length(sizes: list[int]) -> None:
    groups = cut_row_groups(sizes, itertools.repeat(500), max_rows=100)
    in_order = [sizes[row] for group in groups for row in group]
    assert in_order == sorted(sizes, reverse=True)


def test_limits_grow_and_stay() -> None:
    assert list(itertools.islice(growing_limits(100, 500), 5)) == [100, 200, 400, 500, 500]
    assert list(itertools.islice(growing_limits(100, 50), 2)) == [50, 50]


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 80))
def test_every_row_group_goes_to_exactly_one_rank(tokens: list[int], world_size: int) -> None:
    shares = deal_out(tokens, [0] * world_size)
    assert len(shares) == world_size
    assert sorted(group for share in shares for group in share) == list(range(len(tokens)))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 8))
def test_ranks_differ_by_no_more_tokens_than_one_row_group(
    tokens: list[int], world_size: int
) -> None:
    shares = deal_out(tokens, [0] * world_size)
    loads = [sum(tokens[group] for group in share) for share in shares]
    assert max(loads) - min(loads) <= max(tokens)


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    st.lists(st.integers(0, 5000), min_size=1, max_size=8),
)
def test_a_rank_gets_more_only_while_it_has_least_before_it(
    tokens: list[int], before: list[int]
) -> None:
    shares = deal_out(tokens, before)
    loads = [
        load + sum(tokens[group] for group in share)
        for load, share in zip(before, shares, strict=True)
    ]
    for load, share in zip(loads, shares, strict=True):
        assert not share or load - min(tokens[group] for group in share) <= min(loads)


def test_row_groups_without_tokens_are_spread_too() -> None:
    assert [len(share) for share in deal_out([0] * 9, [0] * 3)] == [3, 3, 3]


def test_more_ranks_than_row_groups_leave_some_without() -> None:
    assert sorted(map(len, deal_out([5, 5], [0] * 4))) == [0, 0, 1, 1]
