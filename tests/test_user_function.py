"""What tells a user's function from another, so that no run goes on with another one."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sparkinfer.functions.user_function import Arguments, UserFunction


def identity(fn: Any) -> str:
    return UserFunction.of(fn, Arguments()).identity()


def add(number: int, batch: Any) -> Any:
    return batch + number


def adder(number: int) -> Callable[[Any], Any]:
    def added(batch: Any) -> Any:
        return batch + number

    return added


class Adder:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, batch: Any) -> Any:
        return batch + self.number

    def also(self, batch: Any) -> Any:
        return batch + self.number


MADE: dict[str, Callable[[int], Any]] = {
    "partial": lambda number: functools.partial(add, number),
    "closure": adder,
    "instance": Adder,
    "method": lambda number: Adder(number).also,
    "closure of a closure": lambda number: adder(adder(number)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", MADE)
def test_what_it_holds_tells_it_from_others(kind: str) -> None:
    assert identity(MADE[kind](1)) == identity(MADE[kind](1))
    assert identity(MADE[kind](1)) != identity(MADE[kind](2))


def test_so_does_what_is_within_a_lambda() -> None:
    one, two = lambda batch: [x + 1 for x in batch], lambda batch: [x + 2 for x in batch]
    assert identity(one) != identity(two)


def test_it_is_the_same_in_each_process() -> None:
    script = (
        "from sparkinfer.functions.user_function import Arguments, UserFunction\n"
        "from tests.test_user_function import Adder\n"
        "print(UserFunction.of(Adder({'a', 'b', 'c', 'd'}), Arguments()).identity())"
    )
    ran = [subprocess.check_output([sys.executable, "-c", script]) for _ in range(3)]
    assert len(set(ran)) == 1
