import threading
import weakref
from collections.abc import Iterator

import pytest

from sparkinfer.workers.lookahead import InTurn, LookAhead


class Item:
    pass


def test_items_come_prepared_and_in_order() -> None:
    ahead = LookAhead(range(50), lambda number: number * 2)
    assert list(ahead) == [number * 2 for number in range(50)]


def test_preparing_runs_in_another_thread() -> None:
    names = list(LookAhead(range(2), lambda _: threading.current_thread().name))
    assert names == ["sparkinfer-lookahead"] * 2


@pytest.mark.parametrize("where", ["source", "prepare"])
def test_an_exception_reaches_the_consumer_in_its_place(where: str) -> None:
    def source() -> Iterator[int]:
        yield 1
        if where == "source":
            raise ValueError("from the source")
        yield 2

    def prepare(number: int) -> int:
        if number == 2:
            raise ValueError("from prepare")
        return number

    items = iter(LookAhead(source(), prepare))
    assert next(items) == 1
    with pytest.raises(ValueError, match=f"from {'the source' if where == 'source' else where}"):
        next(items)


def test_the_thread_is_at_most_three_items_ahead() -> None:
    pulled: list[int] = []
    enough = threading.Event()

    def source() -> Iterator[int]:
        for number in range(100):
            pulled.append(number)
            if len(pulled) == 3:
                enough.set()
            yield number

    ahead = LookAhead(source(), lambda number: number)
    assert next(iter(ahead)) == 0
    assert enough.wait(5)
    ahead.close()
    assert len(pulled) <= 4


def test_closing_ends_the_thread_and_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    ahead = LookAhead(source(), lambda number: number)
    next(iter(ahead))
    ahead.close()
    assert closed.is_set()
    assert not any(t.name == "sparkinfer-lookahead" for t in threading.enumerate())


def test_closing_before_the_first_item_is_no_error() -> None:
    ahead = LookAhead([1], lambda number: number)
    ahead.close()
    assert not ahead._thread.is_alive()


def test_an_item_is_the_consumers_alone() -> None:
    ahead = LookAhead(range(3), lambda number: Item())
    items = iter(ahead)
    item = weakref.ref(next(items))
    assert item() is None
    ahead.close()


def test_in_turn_nothing_is_prepared_before_it_is_asked_for() -> None:
    prepared: list[str] = []
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            closed.append(True)

    def prepare(number: int) -> int:
        prepared.append(threading.current_thread().name)
        return number * 2

    in_turn = InTurn(source(), prepare)
    items = iter(in_turn)
    assert (next(items), next(items)) == (0, 2)
    assert prepared == [threading.current_thread().name] * 2
    in_turn.close()
    assert closed == [True]
