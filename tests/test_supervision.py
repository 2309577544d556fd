"""The driver and the ranks, here threads of one process, talk through a folder."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.engines import supervision
from sparkinfer.engines.supervision import (
    DONE,
    SCORING,
    ControlFolderError,
    RankBeat,
    RankResult,
    RunAbortedError,
    Supervisor,
)
from sparkinfer.exceptions import JobError

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "BEAT_S", 0.02)
    monkeypatch.setattr(supervision, "RANK_LOST_AFTER_S", 1.0)
    monkeypatch.setattr(supervision, "DRIVER_LOST_AFTER_S", 1.0)
    monkeypatch.setattr(supervision, "ABORT_GRACE_S", 0.1)


class Watch:
    """A supervisor over a folder, and what it called."""

    def __init__(self, folder: Path, world_size: int, start_timeout_s: float = WAIT_S) -> None:
        self.folder = str(folder)
        self.cancelled = threading.Event()
        self.scoring = threading.Event()
        self.supervisor = Supervisor(
            self.folder, world_size, start_timeout_s, self.cancelled.set, self.scoring.set
        )

    def failure(self, launch_error: Exception | None = None) -> str:
        with pytest.raises(JobError) as raised:
            self.supervisor.results(launch_error)
        return str(raised.value)


def wait_for_abort(beat: RankBeat) -> str:
    """Does what a rank does between batches until it hears of an abort; returns the reason."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            beat.check()
        except RunAbortedError as error:
            return str(error)
        time.sleep(0.01)
    raise TimeoutError("no abort")


def test_what_all_ranks_wrote_is_returned(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor:
        for rank in range(2):
            with RankBeat(watch.folder, rank) as beat:
                beat.enter(SCORING)
                beat.add(RankResult("all", (f"part-{rank}",), rank + 5))
                beat.enter(DONE)
    assert watch.supervisor.results(None) == [
        RankResult("all", ("part-0",), 5),
        RankResult("all", ("part-1",), 6),
    ]
    assert watch.scoring.is_set()
    assert not watch.cancelled.is_set()


def test_an_exception_reaches_the_driver_with_its_rank_and_traceback(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor:
        with RankBeat(watch.folder, 0) as other:
            with pytest.raises(ZeroDivisionError), RankBeat(watch.folder, 1):
                1 / 0  # noqa: B018
            assert "rank 1" in wait_for_abort(other)
        assert watch.cancelled.wait(WAIT_S)
    with pytest.raises(
        JobError, match=r"rank 1 \(process \d+ on .*failed: ZeroDiv.*zero$"
    ) as raised:
        watch.supervisor.results(RuntimeError("exit 1"))
    assert "Traceback (most recent call last)" in str(raised.value.__cause__)
    assert "1 / 0" in str(raised.value.__cause__)


def test_a_rank_that_falls_silent_aborts_the_others(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor, RankBeat(watch.folder, 0) as beat:
        silent = {"state": SCORING, "host": "h", "pid": 7, "beat": 3}
        (tmp_path / "rank-00001.json").write_text(json.dumps(silent))
        assert "rank 1 (process 7 on h) was not heard of" in wait_for_abort(beat)
    assert "rank 1 (process 7 on h) was not heard of" in watch.failure()


def test_a_rank_that_is_done_may_be_silent(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor, RankBeat(watch.folder, 0) as beat:
        with RankBeat(watch.folder, 1) as done:
            done.enter(DONE)
        silence_ends = time.monotonic() + 2 * supervision.RANK_LOST_AFTER_S
        while time.monotonic() < silence_ends:
            beat.check()
        beat.enter(DONE)
    assert watch.supervisor.results(None) == []


def test_a_rank_that_does_not_start_in_time_fails_the_run(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2, start_timeout_s=0.5)
    with watch.supervisor, RankBeat(watch.folder, 1):
        wait_until_seen(watch.supervisor, 1)
        assert watch.cancelled.wait(WAIT_S)
    assert re.search(r"rank 0 did not start within 0 s \(. of 2 run\)", watch.failure())


def test_the_rank_that_fell_silent_first_is_named_when_the_launch_ends(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 3)
    with watch.supervisor:
        for rank in (2, 0, 1):
            state = {"state": SCORING, "host": "h", "pid": rank, "beat": 1}
            (tmp_path / f"rank-{rank:05d}.json").write_text(json.dumps(state))
            wait_until_seen(watch.supervisor, rank)
    assert "rank 2 (process 2 on h) ended without a word" in watch.failure(RuntimeError("exit 1"))


def wait_until_seen(supervisor: Supervisor, rank: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while supervisor._ranks[rank] is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_launch_that_starts_no_rank_gives_the_launchers_reason(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor:
        pass
    assert watch.failure(RuntimeError("no slots")) == "no rank started: no slots"


def test_a_rank_that_spark_starts_again_does_not_run(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor:
        first = {"state": SCORING, "host": "h", "pid": 7, "beat": 3}
        (tmp_path / "rank-00000.json").write_text(json.dumps(first))
        wait_until_seen(watch.supervisor, 0)
        with pytest.raises(RunAbortedError), RankBeat(watch.folder, 0):
            pass
        assert watch.cancelled.wait(WAIT_S)
    assert "rank 0 (process 7 on h) died and was started again" in watch.failure()


def test_a_rank_ends_when_its_driver_is_gone(tmp_path: Path) -> None:
    with RankBeat(str(tmp_path), 0) as beat:
        assert wait_for_abort(beat) == "the driver is gone"


def test_a_rank_ends_when_the_folder_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    folder.mkdir()
    with RankBeat(str(folder), 0) as beat:
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        assert wait_for_abort(beat) == f"{folder} is gone"


def test_a_folder_that_cannot_be_reached_for_a_moment_ends_nothing(tmp_path: Path) -> None:
    folder, away = tmp_path / "ranks", tmp_path / "away"
    folder.mkdir()
    watch = Watch(folder, 1)
    with watch.supervisor:
        folder.rename(away)
        time.sleep(10 * supervision.BEAT_S)
        away.rename(folder)
        with RankBeat(watch.folder, 0) as beat:
            beat.enter(DONE)
    assert watch.supervisor.results(None) == []


def test_a_store_that_fails_now_and_then_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = itertools.cycle([None, OSError("timed out"), None, None, OSError("reset")])
    monkeypatch.setattr(supervision, "ATTEMPT_PAUSE_S", 0.01)
    for name in ("read_text", "replace_text"):
        monkeypatch.setattr(supervision, name, failing(getattr(supervision, name), failures))
    watch = Watch(tmp_path, 2)
    with watch.supervisor:
        beats = [start_beat(watch.folder, rank) for rank in range(2)]
        goes_on_until = time.monotonic() + 2 * supervision.RANK_LOST_AFTER_S
        while time.monotonic() < goes_on_until:
            for beat in beats:
                beat.check()
            time.sleep(supervision.BEAT_S)
        for beat in beats:
            beat.enter(DONE)
            beat.__exit__(None, None, None)
    assert watch.supervisor.results(None) == []


def failing(whole: Any, failures: Iterator[Exception | None]) -> Any:
    def act(*arguments: Any) -> Any:
        failure = next(failures)
        if failure is not None:
            raise failure
        return whole(*arguments)

    return act


def start_beat(folder: str, rank: int) -> RankBeat:
    """Starts a beat; its first look at the folder is not repeated if it fails."""
    for _ in range(10):
        try:
            return RankBeat(folder, rank).__enter__()
        except OSError:
            continue
    raise TimeoutError("the store always fails")


def test_a_folder_that_a_rank_cannot_reach_is_named(tmp_path: Path) -> None:
    folder = str(tmp_path / "elsewhere")
    with pytest.raises(ControlFolderError, match="elsewhere is not there on .*same path"):
        RankBeat(folder, 0).__enter__()


def test_a_state_that_is_half_written_is_passed_over(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    (tmp_path / "rank-00000.json").write_text('{"state": "sco')
    with watch.supervisor:
        time.sleep(5 * supervision.BEAT_S)
    assert watch.failure() == "no rank started"
