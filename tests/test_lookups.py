from collections.abc import Callable

import pytest
import torch

from sparkinfer.models.lookups import positions_held, watched_lookups

TABLE = torch.nn.Embedding(40, 2)
OTHER = torch.nn.Embedding(16, 2)
INDICES = torch.tensor([[0, 15], [3, 16]])


def positions(offset: int) -> Callable[[int], None]:
    """Returns what looks up a token and the position of each, the first being at an offset."""

    def run(tokens: int) -> None:
        OTHER(torch.full((tokens,), 7))
        TABLE(torch.arange(tokens) + offset)

    return run


@pytest.mark.parametrize(("offset", "held"), [(0, 40), (1, 39), (2, 38), (20, 20)])
def test_a_table_of_positions_ends_the_text(offset: int, held: int) -> None:
    assert positions_held(positions(offset), claimed=512) == held


def test_what_is_claimed_holds_where_the_table_is_larger() -> None:
    assert positions_held(positions(2), claimed=32) == 32


def test_buckets_of_distances_that_grow_only_at_first_are_no_positions() -> None:
    def run(tokens: int) -> None:
        OTHER(torch.arange(tokens).clamp(max=15))

    assert positions_held(run, claimed=512) == 512


def test_a_model_that_fails_tells_nothing() -> None:
    def run(tokens: int) -> None:
        raise RuntimeError("no")

    assert positions_held(run, claimed=512) == 512


@pytest.mark.parametrize(
    "look_up",
    [
        lambda: OTHER(INDICES),
        lambda: torch.gather(torch.zeros(2, 16), dim=1, index=INDICES),
        lambda: torch.zeros(2, 16).gather(1, INDICES),
        lambda: torch.index_select(torch.zeros(2, 16), 1, INDICES.flatten()),
        lambda: torch.zeros(16)[INDICES],
        lambda: torch.zeros(2, 16)[:, INDICES],
    ],
)
def test_an_index_beyond_its_table_is_told_before_the_device_sees_it(
    look_up: Callable[[], torch.Tensor],
) -> None:
    with pytest.raises(IndexError, match="index 16 in a table of 16 rows"), watched_lookups():
        look_up()


def test_what_is_no_lookup_stays_as_it_is() -> None:
    values = torch.arange(6.0).view(2, 3)
    with watched_lookups() as seen:
        assert values[values > 2].tolist() == [3, 4, 5]
        assert values[None, :, -1].tolist() == [[2, 5]]
        assert values[torch.tensor([-1])].tolist() == [[3, 4, 5]]
    assert seen == {}
