"""The tokens of a batch after memory ran out."""

from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.batching.budget import PATIENCE, TokenBudget


def fit(budget: TokenBudget, batches: int) -> int:
    for _ in range(batches):
        budget.fitted()
    return budget.tokens


def test_a_budget_that_never_ran_out_stays() -> None:
    assert fit(TokenBudget(1000), 10 * PATIENCE) == 1000


def test_it_doubles_after_batches_that_fit_up_to_what_was_asked_for() -> None:
    budget = TokenBudget(1000)
    budget.shrink(1000)
    assert budget.tokens == 500
    budget.shrink(400)
    assert budget.tokens == 200
    assert fit(budget, 2 * PATIENCE - 1) == 200
    assert fit(budget, 1) == 400
    assert fit(budget, 2 * PATIENCE) == 800
    assert fit(budget, 100 * PATIENCE) == 1000


def test_each_time_it_runs_out_again_it_waits_twice_as_long() -> None:
    budget = TokenBudget(1000)
    for turn in range(1, 6):
        budget.shrink(budget.tokens)
        assert fit(budget, PATIENCE * 2 ** (turn - 1) - 1) == 500
        assert fit(budget, 1) == 1000


@given(st.integers(1, 10**6), st.lists(st.integers(0, 200), max_size=40))
def test_it_is_never_less_than_a_token_nor_more_than_was_asked_for(
    tokens: int, batches: list[int]
) -> None:
    budget = TokenBudget(tokens)
    for fitting in batches:
        before = budget.tokens
        budget.shrink(before)
        assert 1 <= budget.tokens <= max(1, before // 2)
        assert budget.tokens <= fit(budget, fitting) <= tokens
