"""When a batch leaves and what is in it, without threads and clocks."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.batching.dynamic.calls import Call, Item
from sparkinfer.batching.dynamic.options import BatchOptions
from sparkinfer.batching.dynamic.waiting import FAIR_TURN, Waiting
from sparkinfer.batching.dynamic.work import Work
from sparkinfer.exceptions import QueueFullError


def call_of(*items: Item) -> Call:
    return Call(list(items), cast(Work, None))


def queue(**options: Any) -> Waiting:
    return Waiting(BatchOptions(**{"batch_size": 4, "timeout_ms": 1000, **options}))


def contents(items: list[Item]) -> list[Any]:
    return [item.content for item in items]


def test_nothing_is_due_when_nothing_waits() -> None:
    assert queue().due() == math.inf


def test_a_full_batch_is_due_at_once() -> None:
    waiting = queue()
    for number in range(4):
        waiting.enter(call_of(Item(number)), now=number)
    assert waiting.due() == -math.inf
    assert contents(waiting.take(3.0)) == [0, 1, 2, 3]
    assert waiting.due() == math.inf


def test_a_batch_is_due_when_nothing_came_for_a_tenth_of_the_limit() -> None:
    waiting = queue()
    waiting.enter(call_of(Item("a")), now=10.0)
    assert waiting.due() == pytest.approx(10.1)
    waiting.enter(call_of(Item("b")), now=10.05)
    assert waiting.due() == pytest.approx(10.15)


def test_the_limit_counts_from_the_oldest_item() -> None:
    waiting = queue(batch_size=100)
    for step in range(20):
        waiting.enter(call_of(Item(step)), now=step * 0.0625)
    assert waiting.due() == 1.0


def test_a_worker_that_has_just_ended_waits_for_those_who_call_again() -> None:
    waiting = queue()
    waiting.enter(call_of(Item("a")), now=1.0)
    assert waiting.due(free_since=9.0) == pytest.approx(9.1)
    waiting.enter(call_of(*map(Item, "bcd")), now=9.05)
    assert waiting.due(free_since=9.0) == -math.inf


def test_what_stays_behind_keeps_its_limit() -> None:
    waiting = queue()
    waiting.enter(call_of(*map(Item, range(6))), now=5.0)
    assert contents(waiting.take(5.0)) == [0, 1, 2, 3]
    assert waiting.due() == pytest.approx(5.1)


def test_small_calls_are_first_and_a_large_one_is_not_passed_over_for_ever() -> None:
    waiting = queue()
    waiting.enter(call_of(*(Item(f"large {number}", priority=1) for number in range(8))), now=0)
    taken = []
    for turn in range(FAIR_TURN):
        waiting.enter(call_of(*(Item("small") for _ in range(4))), now=1 + turn)
        taken.append(contents(waiting.take(1 + turn)))
    assert taken[:-1] == [["small"] * 4] * (FAIR_TURN - 1)
    assert taken[-1] == [f"large {number}" for number in range(4)]


def test_a_batch_of_small_calls_is_filled_with_large_ones() -> None:
    waiting = queue()
    waiting.enter(call_of(Item("large", priority=1)), now=0)
    waiting.enter(call_of(Item("small")), now=1)
    assert contents(waiting.take(1)) == ["small", "large"]


def test_items_of_like_length_share_a_batch_within_the_budget_of_tokens() -> None:
    waiting = queue(batch_size=8, max_batch_tokens=400)
    lengths = [100, 5, 100, 5, 100, 5, 100, 100]
    for place, length in enumerate(lengths):
        waiting.enter(call_of(Item(place, length=length)), now=0)
    batches = [contents(waiting.take(0)) for _ in range(3)]
    assert batches == [[0, 2, 4, 6], [1, 3, 5], [7]]


def test_the_first_item_is_in_the_batch_whatever_its_length() -> None:
    waiting = queue(max_batch_tokens=100)
    waiting.enter(call_of(Item("long", length=10_000)), now=0)
    waiting.enter(call_of(*(Item(number, length=1) for number in range(3))), now=0)
    assert contents(waiting.take(0)) == ["long"]


def test_a_batch_keeps_within_its_total_length_in_the_order_of_arrival() -> None:
    waiting = queue(max_batch_length=10)
    waiting.enter(call_of(*(Item(length, length=length) for length in (6, 4, 3, 20, 1))), now=0)
    assert waiting.is_full
    assert [contents(waiting.take(0)) for _ in range(4)] == [[6, 4], [3], [20], [1]]


def test_only_items_of_one_kind_share_a_batch() -> None:
    waiting = Waiting(BatchOptions(batch_size=4), is_padded=True)
    waiting.enter(call_of(*(Item(place, kind=kind) for place, kind in enumerate("abab"))), now=0)
    assert [contents(waiting.take(0)) for _ in range(2)] == [[0, 2], [1, 3]]


def test_a_call_that_finds_no_room_is_refused_or_waits_its_turn() -> None:
    refusing = queue(max_queue=2, when_full="refuse")
    refusing.enter(call_of(Item(1), Item(2)), now=0)
    with pytest.raises(QueueFullError, match="2 items wait and max_queue is 2: no room for 1 more"):
        refusing.enter(call_of(Item(3)), now=0)
    patient = queue(max_queue=2)
    for number in range(5):
        patient.enter(call_of(Item(number)), now=0)
    assert patient.count == 2
    assert [contents(patient.take(1)) for _ in range(3)] == [[0, 1], [2, 3], [4]]


def test_a_call_that_leaves_makes_room() -> None:
    waiting = queue(max_queue=1)
    first, second, third = (call_of(Item(number)) for number in range(3))
    for call in (first, second, third):
        waiting.enter(call, now=0)
    waiting.leave(second, now=1)
    waiting.leave(first, now=2)
    assert contents(waiting.take(2)) == [2]


def test_a_call_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    waiting = queue(max_queue=2, when_full="refuse")
    waiting.enter(call_of(*map(Item, range(5))), now=0)
    assert waiting.count == 5


calls = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.sampled_from("ab")), min_size=1),
    max_size=12,
)
limits = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 8),
        "max_batch_tokens": st.none() | st.integers(1, 60),
        "max_batch_length": st.none() | st.integers(1, 60),
        "max_queue": st.none() | st.integers(1, 10),
    }
)


@given(calls, limits, st.booleans(), st.data())
def test_whatever_stays_is_taken_once_within_the_limits(
    made: list[list[tuple[int, int, str]]], limit: dict[str, Any], padded: bool, data: st.DataObject
) -> None:
    waiting = Waiting(BatchOptions(**limit), is_padded=padded)
    entered = [call_of(*(Item(None, *values) for values in call)) for call in made]
    for call in entered:
        waiting.enter(call, now=0)
    left = data.draw(st.lists(st.sampled_from(entered), unique_by=id)) if entered else []
    for call in left:
        waiting.leave(call, now=0)
    taken: list[Item] = []
    while waiting.count:
        batch = waiting.take(0)
        check_limits(batch, limit, padded)
        taken += batch
    expected = [item for call in entered if call not in left for item in call.items]
    assert sorted(map(id, taken)) == sorted(map(id, expected))
    assert not waiting.clear()


def check_limits(batch: list[Item], limit: dict[str, Any], padded: bool) -> None:
    lengths = [item.length for item in batch]
    assert 1 <= len(batch) <= limit["batch_size"]
    if len(batch) > 1 and limit["max_batch_tokens"]:
        assert max(lengths) * len(batch) <= limit["max_batch_tokens"]
    if len(batch) > 1 and limit["max_batch_length"]:
        assert sum(lengths) <= limit["max_batch_length"]
    if padded:
        assert len({item.kind for item in batch}) == 1
