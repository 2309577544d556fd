import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.batching.planner import deduplicate, padded_tokens, plan_batches

lengths_of_rows = st.lists(st.integers(0, 300), max_size=200)
budgets = st.integers(1, 1000)


@given(lengths_of_rows, budgets, st.integers(1, 50))
def test_every_row_is_in_exactly_one_batch(lengths: list[int], tokens: int, rows: int) -> None:
    batches = plan_batches(lengths, max_tokens=tokens, max_rows=rows)
    placed = sorted(int(row) for batch in batches for row in batch)
    assert placed == list(range(len(lengths)))


@given(lengths_of_rows, budgets, st.integers(1, 50))
def test_a_batch_keeps_within_both_budgets_unless_it_is_one_row(
    lengths: list[int], tokens: int, rows: int
) -> None:
    for batch in plan_batches(lengths, max_tokens=tokens, max_rows=rows):
        assert len(batch) <= rows
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= tokens


@given(lengths_of_rows, budgets, st.integers(1, 50))
def test_rows_of_unlike_length_share_no_batch_if_they_must_not(
    lengths: list[int], tokens: int, rows: int
) -> None:
    batches = plan_batches(lengths, max_tokens=tokens, max_rows=rows, mixes_lengths=False)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len({lengths[row] for row in batch}) == 1 for batch in batches)


@given(lengths_of_rows, budgets)
def test_the_longest_rows_come_first(lengths: list[int], tokens: int) -> None:
    batches = plan_batches(lengths, max_tokens=tokens, max_rows=32)
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_one_very_long_row_does_not_pad_the_others() -> None:
    lengths = [512] + [10] * 400
    batches = plan_batches(lengths, max_tokens=2048, max_rows=1024)
    assert list(batches[0]) == [0]
    assert padded_tokens(lengths, batches) == sum(lengths)


def test_rows_of_natural_lengths_pad_less_than_five_percent() -> None:
    lengths = np.random.default_rng(0).lognormal(3.1, 0.5, 4096).astype(int) + 2
    batches = plan_batches(lengths, max_tokens=2048, max_rows=1024)
    assert 1 - lengths.sum() / padded_tokens(lengths, batches) < 0.05


@given(st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=30))
def test_each_key_is_found_at_its_place_among_the_distinct_ones(keys: list[str]) -> None:
    distinct, indices = deduplicate(keys)
    assert [distinct[index] for index in indices] == keys
    assert len(set(distinct)) == len(distinct) == len(set(keys))


def test_where_padding_costs_nothing_only_the_limits_cut_batches() -> None:
    lengths = [1, 500, 2, 3]
    [batch] = plan_batches(lengths, max_tokens=2000, max_rows=8, pads_freely=True)
    assert batch.tolist() == [1, 3, 2, 0]
    batches = plan_batches(lengths, max_tokens=1500, max_rows=8, pads_freely=True)
    assert [batch.tolist() for batch in batches] == [[1, 3, 2], [0]]
