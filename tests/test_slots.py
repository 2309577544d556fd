"""How many tasks run at the same time, and how many there may come to be.

What a real server of Spark Connect and a real growing cluster tell is tried in
`tests/engines/test_connect.py` and `tests/engines/test_growing_cluster.py`.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.spark import slot_probe, slots
from sparkinfer.spark.job_threads import watched_job
from sparkinfer.spark.slot_probe import TaskSpan, overlapping, probe_slots
from sparkinfer.spark.slots import UNTOLD_SLOTS, Slots, find_slots, wait_for_slots


class Clock:
    """A time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_slots_are_returned_when_they_no_longer_change():
    clock = Clock()

    def read() -> tuple[int, int]:
        ready = sum(clock.now >= start for start in (2.0, 2.5))
        return ready, 4 * ready

    assert wait_for_slots(read, 0, clock, clock.sleep) == 8
    assert 3.5 <= clock.now < 3.8


def test_slots_of_the_expected_executors_are_waited_for():
    clock = Clock()

    def read() -> tuple[int, int]:
        ready = 1 + (clock.now >= 20)
        return ready, ready

    assert wait_for_slots(read, 2, clock, clock.sleep) == 2


def test_slots_of_fewer_executors_are_taken_when_time_is_up():
    clock = Clock()
    assert wait_for_slots(lambda: (1, 3), 2, clock, clock.sleep) == 3
    assert clock.now == pytest.approx(60, abs=1)


def test_no_executor_gives_no_slots():
    clock = Clock()
    assert wait_for_slots(lambda: (0, 0), 0, clock, clock.sleep) == 0


def span(began: float, ended: float, host: str = "a", executor: int = 1) -> TaskSpan:
    return TaskSpan(host, executor, began, ended)


def test_tasks_that_overlap_are_counted():
    one_after_another = [span(0, 1), span(1, 2), span(2, 2)]
    assert overlapping(one_after_another) == {"a": 1}
    assert overlapping([*one_after_another, span(0.5, 1.5), span(0.9, 1.1)]) == {"a": 3}
    assert overlapping([]) == {}


def test_executors_that_start_one_after_the_other_are_added_up():
    spans = [span(0, 1), span(0, 1), span(5, 6, executor=2), span(0, 1, "b", 1)]
    assert overlapping(spans) == {"a": 3, "b": 1}


class FakeSession:
    """What `find_slots` reads of a session of Spark Connect."""

    def __init__(self, **conf: str) -> None:
        self.conf = {f"spark.{name.replace('_', '.')}": value for name, value in conf.items()}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the fake cluster's tasks tell, by host."""
    answer: dict[str, int] = {}
    monkeypatch.setattr(slots, "probe_slots", lambda _: answer)
    return answer


def find(**conf: str) -> Slots:
    session: Any = FakeSession(**conf)
    return find_slots(session)


def test_a_cluster_that_tells_nothing_is_taken_to_have_some(told):
    assert find() == Slots(UNTOLD_SLOTS, UNTOLD_SLOTS, {}, is_certain=False)
    told.update(a=3, b=2)
    assert find() == Slots(5, 5, {"a": 3, "b": 2})


def test_a_cluster_may_grow_to_its_most_executors_or_for_all_partitions(told):
    told["a"] = 2
    dynamic = {"dynamicAllocation_enabled": "true"}
    assert find(**dynamic) == Slots(2, 200, {"a": 2}, is_certain=False)
    assert find(**dynamic, sql_shuffle_partitions="30").most == 30
    assert find(**dynamic, sql_shuffle_partitions="auto").most == 200
    bounded = dynamic | {"dynamicAllocation_maxExecutors": "6", "executor_cores": "8"}
    assert find(**bounded).most == 48
    assert find(**bounded, task_cpus="3").most == 12
    gpus = {"executor_resource_gpu_amount": "4", "task_resource_gpu_amount": "2"}
    assert find(**bounded, **gpus).most == 12


class Untold:
    """A session of Spark Connect whose cluster fails every job."""

    def addTag(self, tag: str) -> None:  # noqa: N802
        pass

    removeTag = interruptTag = addTag  # noqa: N815


def test_a_probe_that_fails_gives_no_number_and_says_so(monkeypatch, caplog):
    def fail(*_: Any) -> Any:
        raise RuntimeError("[UNSUPPORTED] no functions here\nstack")

    monkeypatch.setattr(slot_probe, "_spans", fail)
    session: Any = Untold()
    with caplog.at_level(logging.WARNING):
        assert probe_slots(session) == {}
    assert "([UNSUPPORTED] no functions here); give num_workers" in caplog.text


def test_workers_of_another_python_are_an_error_of_the_probe(monkeypatch):
    def fail() -> Any:
        raise RuntimeError(
            "Python in worker has different version: 3.10 than that in driver: 3.11, PySpark"
        )

    def spans(spark: Any, tasks: int) -> Any:
        return watched_job(spark, fail, "tasks that fail", None)

    monkeypatch.setattr(slot_probe, "_spans", spans)
    session: Any = Untold()
    with pytest.raises(EngineUnavailableError, match="driver runs Python 3.11, the workers 3.10"):
        probe_slots(session)


def test_jobs_are_larger_until_some_of_their_tasks_wait_and_an_answer_stands(monkeypatch):
    asked: list[int] = []

    def spans(_: Any, tasks: int) -> list[TaskSpan]:
        asked.append(tasks)
        # The first job's workers start one after the other.
        return [span(one if len(asked) == 1 else 0, one + 1) for one in range(min(tasks, 100))]

    monkeypatch.setattr(slot_probe, "_spans", spans)
    session: Any = Untold()
    assert probe_slots(session) == {"a": 100}
    assert asked == [16, 16, 128]
    assert probe_slots(session) == {"a": 100}
    assert asked == [16, 16, 128]
