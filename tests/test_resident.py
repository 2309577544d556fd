"""What a process keeps from one task to the next."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from sparkinfer.workers import resident, worker_reuse


class Model:
    """Stands for a loaded one; refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.myself = self


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """An empty process that settles as those of Spark do."""
    resident.release()
    resident.on_change(worker_reuse.settle_or_unsettle)
    yield
    resident.release()


def load(key: str) -> weakref.ref[Any]:
    return weakref.ref(resident.get(key, Model, gc.collect))


def test_a_model_is_kept_until_another_takes_its_place() -> None:
    first = load("one")
    assert load("one")() is first()
    second = load("two")
    assert first() is None
    assert second() is not None


def test_the_collector_leaves_a_kept_model_out() -> None:
    assert gc.get_freeze_count() == 0
    load("one")
    assert gc.get_freeze_count() > 0
    resident.release()
    assert gc.get_freeze_count() == 0


def test_what_was_kept_is_gone_before_the_next_is_loaded() -> None:
    first = load("one")
    seen = []
    resident.get("two", lambda: seen.append(first()), lambda: None)
    assert seen == [None]
