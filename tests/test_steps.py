from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError, ModelLoadError
from sparkinfer.models import sources
from sparkinfer.models.sources import ModelSource
from sparkinfer.option_groups import LoadingConfig
from sparkinfer.workers import steps
from sparkinfer.workers.steps import (
    Step,
    current_step,
    step,
    wait_for,
    watched,
    watched_from_beside,
)

TIMEOUT_S = 0.3
HANGS_S = 60.0


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What hangs in a test ends with it."""
    event = threading.Event()
    yield event
    event.set()


def test_a_result_and_an_error_come_through() -> None:
    assert watched(lambda: 3, "three", TIMEOUT_S) == 3
    with pytest.raises(ModelLoadError, match="no such model"):
        watched(raise_it(ModelLoadError("no such model")), "the model", TIMEOUT_S)


def raise_it(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_what_hangs_is_told_with_the_step_that_it_is_at(released: threading.Event) -> None:
    def hang() -> None:
        with step("a first step"):
            pass
        with step("loading the model"), step("waiting for a lock"):
            released.wait(HANGS_S)

    with pytest.raises(JobError) as raised:
        watched(hang, "the model's files", TIMEOUT_S)
    assert raised.value.message.startswith(
        "nothing has moved for 0.3 s in the model's files (waiting for a lock); "
    )
    assert "--set step_timeout_s=N" in raised.value.message


def test_steps_that_follow_one_another_are_no_stall() -> None:
    def act() -> str:
        for number in range(12):
            with step(f"step {number}"):
                time.sleep(TIMEOUT_S / 4)
        return "done"

    assert watched(act, "steps", TIMEOUT_S) == "done"


def test_what_must_be_done_in_this_thread_is_watched_from_beside() -> None:
    stalled = threading.Event()
    told: list[JobError] = []

    def on_stall(error: JobError) -> None:
        told.append(error)
        stalled.set()

    with watched_from_beside("the start", TIMEOUT_S, on_stall), step("loading the model"):
        assert stalled.wait(HANGS_S)
    [error] = told
    assert error.message.startswith("nothing has moved for 0.3 s in the start (loading the model);")


def test_what_is_over_is_no_longer_watched_from_beside() -> None:
    told: list[JobError] = []
    with pytest.raises(ValueError, match="bad"), watched_from_beside("it", TIMEOUT_S, told.append):
        raise ValueError("bad")
    for thread in threading.enumerate():
        if thread.name == "sparkinfer-step":
            thread.join(HANGS_S)
    assert told == []


def test_a_folder_that_grows_is_no_stall_and_one_that_does_not_is(
    tmp_path: Path, released: threading.Event
) -> None:
    def act() -> None:
        with step("fetching", tmp_path / "into"):
            (tmp_path / "into").mkdir()
            for number in range(12):
                (tmp_path / "into" / f"part-{number}").write_bytes(b"x")
                time.sleep(TIMEOUT_S / 4)
            released.wait(HANGS_S)

    with pytest.raises(JobError, match=r"\(fetching\)"):
        watched(act, "the model's files", TIMEOUT_S)
    assert len(list((tmp_path / "into").iterdir())) == 12


def test_a_wait_says_every_minute_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(steps, "SAY_EVERY_S", 0.2)
    monkeypatch.setattr(steps, "LOOK_EVERY_S", 0.01)
    future: Future[int] = Future()

    def now() -> Step:
        if len(caplog.records) == 3:
            future.set_result(1)
        return Step("loading the model")

    with caplog.at_level(logging.WARNING):
        assert wait_for(future, "one worker", None, now) == 1
    assert caplog.messages[:1] == [
        "still waiting for one worker (loading the model), for 0 min now"
    ]
    assert len(caplog.records) == 3


def test_no_step_is_left_behind_by_an_error() -> None:
    with pytest.raises(ValueError, match="bad"), step("a step"):
        raise ValueError("bad")
    assert current_step() is None


HOLDER = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_that_another_process_keeps_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process is real; it has the lock with which one process of a node fetches."""
    loading = LoadingConfig(cache_dir=str(tmp_path))
    source = ModelSource("remote", "m", None, "", "memory://model")
    monkeypatch.setattr(sources, "cache_folder", lambda _: tmp_path)
    lock = tmp_path / f"{hashlib.sha256(source.location.encode()).hexdigest()[:16]}.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(JobError) as raised:
            watched(
                lambda: sources._fetch_into_cache(source, "model 'm'", loading), "files", TIMEOUT_S
            )
        assert "fetching model 'm' on " in raised.value.message
        assert str(lock) in raised.value.message
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("value", [1, None])
def test_the_timeout_is_an_option(value: int | None) -> None:
    config = ScoringConfig(model="m", input_col="text", step_timeout_s=value)
    assert config.step_timeout_s == value
