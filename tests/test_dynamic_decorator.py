"""Batchers in the place of functions and of all kinds of methods."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest

from sparkinfer.batching.dynamic import aio, dynamically
from sparkinfer.exceptions import ConfigError


class Model:
    scale = 10

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @dynamically(batch_size=4)
    def predict(self, numbers: list[int]) -> list[int]:
        """Multiplies."""
        return [self.factor * number for number in numbers]

    @aio.dynamically
    async def predict_async(self, numbers: list[int]) -> list[int]:
        return [self.factor * number for number in numbers]

    @classmethod
    @dynamically
    def inner_class_method(cls, numbers: list[int]) -> list[int]:
        return [cls.scale * number for number in numbers]

    @dynamically
    @classmethod
    def outer_class_method(cls, numbers: list[int]) -> list[int]:
        return [cls.scale * number for number in numbers]

    @staticmethod
    @dynamically
    def inner_static_method(numbers: list[int]) -> list[int]:
        return [-number for number in numbers]

    @dynamically
    @staticmethod
    def outer_static_method(numbers: list[int]) -> list[int]:
        return [-number for number in numbers]


class Larger(Model):
    scale = 100

    @dynamically
    def predict(self, numbers: list[int]) -> list[int]:
        return [1 + number for number in super().predict(numbers)]


def test_a_decorated_function_keeps_its_name_and_text() -> None:
    @dynamically
    def lengths(texts: list[str]) -> list[int]:
        """Counts."""
        return [len(text) for text in texts]

    assert (lengths.__name__, lengths.__doc__) == ("lengths", "Counts.")
    assert lengths("abc") == 3
    assert lengths.__wrapped__(["abc"]) == [3]
    lengths.shutdown()


def test_each_instance_has_one_batcher() -> None:
    two, three = Model(2), Model(3)
    assert two.predict is two.predict
    assert two.predict is not three.predict
    assert (two.predict(5), three.predict([5, 6])) == (10, [15, 18])
    assert asyncio.run(two.predict_async(5)) == 10
    assert Model.predict(two, 5) == 10
    assert Model.predict.__doc__ == "Multiplies."


def test_a_method_can_call_that_of_the_class_above() -> None:
    assert Larger(2).predict(5) == 11


@pytest.mark.parametrize("name", ["inner_class_method", "outer_class_method"])
def test_each_class_has_one_batcher(name: str) -> None:
    assert [getattr(one, name)(2) for one in (Model, Larger, Larger(1))] == [20, 200, 200]
    assert getattr(Larger, name) is getattr(Larger(1), name)


@pytest.mark.parametrize("name", ["inner_static_method", "outer_static_method"])
def test_a_static_method_has_one_batcher(name: str) -> None:
    assert getattr(Model, name)(2) == -2
    assert getattr(Larger(1), name) is getattr(Model, name)


def test_a_batcher_is_collected_with_its_instance() -> None:
    model = Model(2)
    before = set(threading.enumerate())
    model.predict(1)
    (worker,) = set(threading.enumerate()) - before
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    worker.join(60)
    assert not worker.is_alive()


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_a_copy_has_a_batcher_of_its_own(copied: Any) -> None:
    model = Model(2)
    assert model.predict(5) == 10
    other = copied(model)
    other.factor = 3
    assert (other.predict(5), model.predict(5)) == (15, 10)


def test_an_instance_that_can_keep_nothing_is_refused() -> None:
    class Slotted:
        __slots__ = ()

        @dynamically
        def predict(self, numbers: list[int]) -> list[int]:
            return numbers

    with pytest.raises(ConfigError, match="has no __dict__ to keep its batcher in"):
        Slotted().predict(1)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="func=3: expected a function of a batch"):
        dynamically(3)
