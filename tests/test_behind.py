"""A thread that works on items while the next ones are made."""

import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from sparkinfer.workers.behind import Behind


def put_all(work: Callable[[int], None], numbers: Iterable[int]) -> None:
    with Behind(work) as behind:
        for number in numbers:
            behind.put(number)


def test_every_item_is_worked_on_in_order_and_none_is_left_at_the_end() -> None:
    seen: list[int] = []
    put_all(seen.append, range(100))
    assert seen == list(range(100))


def test_the_next_item_is_made_while_one_is_worked_on() -> None:
    made = threading.Event()
    seen: list[bool] = []
    with Behind(lambda _: seen.append(made.wait(30))) as behind:
        behind.put(1)
        made.set()  # would not come to this if `put` waited for the work
    assert seen == [True]


def test_at_most_one_item_waits() -> None:
    go_on, started = threading.Event(), threading.Event()
    put: list[int] = []

    def work(_: int) -> None:
        started.set()
        go_on.wait(30)

    def fill(behind: Behind[int]) -> None:
        for number in range(4):
            behind.put(number)
            put.append(number)

    with Behind(work) as behind:
        filling = threading.Thread(target=fill, args=(behind,))
        filling.start()
        started.wait(30)
        filling.join(0.2)
        assert len(put) <= 2  # one is worked on, one waits
        go_on.set()
        filling.join(30)
    assert put == [0, 1, 2, 3]


@pytest.mark.parametrize("failing", [0, 1, 5])
def test_what_the_work_raises_is_raised_where_items_come_from(failing: int) -> None:
    seen: list[int] = []

    def work(number: int) -> None:
        if number == failing:
            raise OSError("no room")
        seen.append(number)

    with pytest.raises(OSError, match="no room"):
        put_all(work, range(6))
    assert seen == list(range(failing))


def test_an_error_of_the_one_who_makes_items_is_his_and_the_thread_ends() -> None:

    def numbers() -> Iterator[int]:
        yield 1
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        put_all(lambda _: None, numbers())
    assert not any(one.name == "sparkinfer-behind" for one in threading.enumerate())
