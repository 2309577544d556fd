"""What is kept of each call on an output."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError, ResumeError, TooManyErrorsError
from sparkinfer.jobs import account, sessions
from sparkinfer.jobs.sealed import seal
from sparkinfer.jobs.sessions import (
    Session,
    SessionDevice,
    next_session,
    read_sessions,
    sessions_of_others,
    write_session,
)
from sparkinfer.workers.statistics import ScoringStatistics
from tests.disk import Killed
from tests.made_up_engine import MadeUpEngine, add_file, job_of_eighty_rows, run_made_up
from tests.test_runner import kill_before
from tests.written import manifest_values

RUN = "0123abcd"
SESSION = Session(
    number=0,
    started="2026-01-01T00:00:00+00:00",
    outcome="finished",
    reason="",
    seconds=12.5,
    phases={"prepare": 1.0, "score": 9.5},
    engine="local",
    workers=2,
    device_type="cpu",
    rows=80,
    rows_before=20,
    retried_rows=3,
    errors=1,
    devices=(SessionDevice("cpu on here", ScoringStatistics(rows=80, forward_s=0.25)),),
    timeline=((0.0, 20), (9.5, 100)),
    verdict={"accepted": {"backend": "none"}},
    options={"engine": "local"},
    versions={"python": "3.11"},
    hosts={"here": {"cores": 2, "gpus": {}}},
    price_per_hour=1.5,
    lost_workers=1,
    notes=("a note",),
)


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


def run(config: ScoringConfig, **options: Any) -> MadeUpEngine:
    engine = MadeUpEngine(config, **options)
    run_made_up(config, engine)
    return engine


def kept(config: ScoringConfig) -> tuple[Session, ...]:
    return read_sessions(str(config.output), manifest_values(config.output)["run"])


def folder_of(output: Any) -> Path:
    return Path(str(output)) / "_sparkinfer" / "runs"


def stop_before(number: int) -> Callable[[Any], None]:
    def before(task: Any) -> None:
        if task.chunk.number == number:
            raise KeyboardInterrupt

    return before


def fail_before(number: int) -> Callable[[Any], None]:
    def before(task: Any) -> None:
        if task.chunk.number == number:
            raise JobError("a worker failed; password=swordfish")

    return before


def test_sessions_come_back_in_their_order_and_by_run(tmp_path: Path) -> None:
    output, later = str(tmp_path), replace(SESSION, number=1, outcome="stopped", notes=())
    assert (read_sessions(output, RUN), next_session(output)) == ((), 0)
    write_session(output, RUN, later)
    write_session(output, RUN, SESSION)
    write_session(output, "89abcdef", replace(SESSION, number=2))
    assert read_sessions(output, RUN) == (SESSION, later)
    assert next_session(output) == 3
    [other] = sessions_of_others(output, RUN)
    assert other.endswith("_sparkinfer/runs/000002-89abcdef.json")


def test_the_oldest_sessions_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 3)
    for number in range(5):
        write_session(str(tmp_path), RUN, replace(SESSION, number=number))
    assert [one.number for one in read_sessions(str(tmp_path), RUN)] == [2, 3, 4]
    assert next_session(str(tmp_path)) == 5


def edited(**changes: Any) -> Callable[[str], str]:
    def edit(text: str) -> str:
        values = {**json.loads(text), **changes}
        del values["checksum"], values["schema_version"]
        return seal(values)

    return edit


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:40],
        lambda text: text.replace('"rows": 80', '"rows": 81'),
        edited(surprise=1),
        edited(started="yesterday"),
        edited(outcome="lost"),
        edited(rows=-1),
        edited(seconds="long"),
        edited(phases={"score": None}),
        edited(phases=3),
        edited(devices=[{"device": "cpu"}]),
        edited(timeline=[[1]]),
        edited(verdict=None),
        edited(hosts={"here": 3}),
        edited(reason=None),
        edited(notes=[1]),
        edited(price_per_hour="1"),
    ],
)
def test_a_damaged_session_is_told_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[str], str]
) -> None:
    write_session(str(tmp_path), RUN, SESSION)
    write_session(str(tmp_path), RUN, replace(SESSION, number=1))
    path = folder_of(tmp_path) / f"000000-{RUN}.json"
    path.write_text(spoil(path.read_text()))
    with caplog.at_level(logging.WARNING):
        assert [one.number for one in read_sessions(str(tmp_path), RUN)] == [1]
    assert f"{path} is damaged" in caplog.text


def test_a_finished_run_is_kept_with_what_it_did(config: ScoringConfig) -> None:
    run(config.replace(price_per_hour=2.5))
    [session] = kept(config)
    assert (session.number, session.outcome, session.reason) == (0, "finished", "")
    assert (session.rows, session.rows_before, session.retried_rows) == (80, 0, 0)
    assert (session.errors, session.engine, session.device_type) == (12, "local", "cpu")
    assert (session.workers, session.price_per_hour) == (1, 2.5)
    assert (next(iter(session.phases)), "score" in session.phases) == ("checks", True)
    assert session.seconds >= sum(session.phases.values()) - 0.1
    assert session.timeline[-1][1] == 80
    assert session.verdict["accepted"]["backend"] == "none"
    assert session.options["chunks.target_rows"] == 20
    assert {"python", "sparkinfer", "torch"} <= session.versions.keys()


def test_a_run_of_a_function_is_kept_with_what_it_did(tmp_path: Path) -> None:
    rows, output = tmp_path / "in.parquet", tmp_path / "out"
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"]}), rows)
    shout = "tests.made_up_functions:shout"
    config = ScoringConfig(engine="local", input=str(rows), fn=shout, output=str(output))
    sparkinfer.run(config, progress="none")
    [session] = kept(config)
    assert (session.outcome, session.rows, session.errors) == ("finished", 2, 0)
    assert session.verdict["accepted"] == shout
    assert "torch" not in session.versions


def test_what_is_broken_off_and_gone_on_with_is_a_session_each(config: ScoringConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(config, before_chunk=stop_before(1))
    with pytest.raises(JobError):
        run(config, before_chunk=fail_before(2))
    with pytest.raises(Killed):  # leaves none
        run(config, before_chunk=kill_before(3))
    run(config)
    stopped, failed, finished = kept(config)
    assert [one.number for one in (stopped, failed, finished)] == [0, 1, 2]
    assert (stopped.outcome, stopped.reason, stopped.rows) == ("stopped", "", 20)
    assert (failed.outcome, failed.rows, failed.rows_before) == ("failed", 20, 20)
    assert failed.reason == "a worker failed; password=***"
    assert (finished.outcome, finished.rows, finished.rows_before) == ("finished", 20, 60)
    assert finished.timeline[0][1] >= 60
    assert failed.phases["score"] >= 0


def test_a_call_with_nothing_to_do_and_one_that_is_refused_are_not_kept(
    config: ScoringConfig,
) -> None:
    run(config)
    run(config)
    with pytest.raises(ResumeError):
        run(config.replace(max_length=8))
    assert len(kept(config)) == 1
    add_file(Path(str(config.input)), 2)
    run(config.replace(incremental=True))
    assert [(one.rows, one.rows_before) for one in kept(config)] == [(80, 0), (40, 80)]


def test_a_call_that_is_refused_after_the_trial_is_not_kept(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(2))
    with pytest.raises(ResumeError):
        run(config, dtype="bfloat16")
    assert kept(config) == ()


def test_a_call_that_fails_before_its_first_row_is_kept_where_there_is_a_run(
    config: ScoringConfig,
) -> None:
    class Fails(MadeUpEngine):
        def on_one_worker(self, act: Any, warm_up: Any) -> Any:
            raise JobError("the gate's worker failed")

    with pytest.raises(JobError):
        run_made_up(config, Fails(config))
    assert not Path(str(config.output)).exists()
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(2))
    with pytest.raises(JobError):
        run_made_up(config, Fails(config))
    [session] = kept(config)
    assert (session.outcome, session.workers, session.rows) == ("failed", 0, 0)
    assert (session.rows_before, session.verdict, session.timeline) == (40, {}, ())


def test_rows_that_are_scored_again_are_told_apart(config: ScoringConfig) -> None:
    run(config, failing=(5, 13, 44))
    run(config.replace(retry_errors=True), failing=(13,))
    first, second = kept(config)
    assert (first.rows, first.errors) == (80, 15)
    assert (second.rows, second.rows_before, second.retried_rows) == (0, 80, 3)
    assert (second.outcome, second.workers) == ("finished", 1)
    run(config.replace(retry_errors=True), failing=(13,))
    assert kept(config)[2].retried_rows == 1


def test_a_limit_of_errors_that_is_reached_fails_the_call(config: ScoringConfig) -> None:
    with pytest.raises(TooManyErrorsError):
        run(config.replace(max_error_rows=3))
    [session] = kept(config)
    assert (session.outcome, session.rows, session.errors) == ("failed", 40, 6)
    assert "6 rows have an error" in session.reason


def test_sessions_of_what_was_replaced_go_once_the_new_run_is_finished(
    config: ScoringConfig,
) -> None:
    run(config)
    again = config.replace(overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        run(again, before_chunk=stop_before(2))
    assert [one.outcome for one in kept(config)] == ["stopped"]
    assert len(list(folder_of(config.output).iterdir())) == 2
    run(again)
    assert [(one.number, one.outcome) for one in kept(config)] == [(1, "stopped"), (2, "finished")]
    assert len(list(folder_of(config.output).iterdir())) == 2


def test_a_session_that_cannot_be_written_fails_nothing(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(account, "write_session", fail)
    with caplog.at_level(logging.WARNING):
        run(config)
    assert "is not kept" in caplog.text
    assert (Path(str(config.output)) / "_SUCCESS").exists()
    assert kept(config) == ()


def test_a_run_that_has_lost_the_output_keeps_nothing_there(
    config: ScoringConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def overtaken(task: Any) -> None:
        lease = Path(str(config.output)) / "_sparkinfer" / "lease"
        claim = (lease / "epoch-00000001.json").read_text()
        (lease / "epoch-00000002.json").write_text(claim)

    with pytest.raises(JobError, match="lost"), caplog.at_level(logging.WARNING):
        run(config, before_chunk=overtaken)
    assert kept(config) == ()
    assert "is not kept" not in caplog.text


def test_workers_tell_what_they_took_and_where(classifier: Path, tmp_path: Path) -> None:
    config = job_of_eighty_rows(classifier, tmp_path).replace(dtype="float32")
    result = sparkinfer.run(config)
    [session] = kept(config)
    [device] = session.devices
    assert device.statistics.rows == result.statistics.rows == 80
    assert device.statistics.forward_s == pytest.approx(result.statistics.forward_s, abs=1e-5)
    [(name, host)] = session.hosts.items()
    assert device.device == f"cpu on {name}"
    assert host["cores"] > 0
    assert host["memory_bytes"] > 2**20
    assert (host["gpus"], bool(host["cpu"])) == ({}, True)
