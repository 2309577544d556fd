"""What the driver makes of deaths."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkinfer.engines.deaths import Deaths, is_death
from sparkinfer.exceptions import JobError
from sparkinfer.workers.suspects import MOST_DEADLY, MOST_UNEXCEPTED, Suspects

DIED = "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)"


@pytest.mark.parametrize(
    ("text", "died"),
    [
        (f"Job aborted: Task 0 in stage 3.0 failed 4 times, most recent failure: {DIED}", True),
        (DIED, True),
        ("Task 0 in stage 3.0 failed 4 times: ExecutorLostFailure (executor 1 exited)", True),
        ("Task 0 in stage 3.0 failed 4 times: ValueError: no", False),
        ("failed 1 times: sparkinfer.exceptions.DeviceError: device cuda:0 is broken", True),
        ("java.net.SocketException: Connection reset\n\tat a.PythonRunner.read", True),
        ("java.net.SocketException: Connection reset\n\tat org.apache.hadoop.fs.s3a", False),
    ],
)
def test_deaths_are_told_from_other_failures(text: str, died: bool) -> None:
    assert is_death(JobError(text)) is died
    wrapped = JobError("in one line")
    wrapped.__cause__ = RuntimeError(text)
    assert is_death(wrapped) is died


def die(deaths: Deaths, launch: str, *hashes: str, alone: bool = False) -> None:
    """Leaves the notes of a worker that dies over inputs of chunk 3."""
    Suspects(deaths.attempt(3, launch)).running("model", hashes, alone=alone)


def let_live(deaths: Deaths) -> None:
    """Leaves the notes of a worker that dies after an input that ran alone in it."""
    suspects = Suspects(deaths.attempt(3, "survived"))
    suspects.running("model", ["innocent"], alone=True)
    suspects.running("model", ["other"])


def test_a_death_that_tells_nothing_is_passed_over_once(tmp_path: Path) -> None:
    deaths = Deaths(str(tmp_path / "notes"))
    assert not deaths.attempt(3, "a").has_predecessor
    deaths.add(3, JobError("died"))
    assert deaths.attempt(3, "b").has_predecessor
    assert not deaths.attempt(4, "b").has_predecessor
    with pytest.raises(JobError, match="die over chunk 3, and it is not .* single texts .died."):
        deaths.add(3, JobError("died"))


def test_deaths_that_tell_something_are_followed_by_another_attempt(tmp_path: Path) -> None:
    deaths = Deaths(str(tmp_path))
    let_live(deaths)
    deaths.add(3, JobError("died"))
    for number in range(MOST_DEADLY):
        die(deaths, f"alone{number}", f"text{number}", alone=True)
        deaths.add(3, JobError("died"))
        die(deaths, f"again{number}", f"batch{number}", f"text{number + 1}")
        deaths.add(3, JobError("died"))
    die(deaths, "last", "one more", alone=True)
    with pytest.raises(JobError, match="not the fault of single texts"):
        deaths.add(3, JobError("died"))


def test_a_model_that_kills_whatever_runs_alone_is_soon_given_up(tmp_path: Path) -> None:
    deaths = Deaths(str(tmp_path))
    for number in range(MOST_UNEXCEPTED):
        die(deaths, f"alone{number}", f"text{number}", alone=True)
        deaths.add(3, JobError("died"))
    die(deaths, "last", "one more", alone=True)
    with pytest.raises(JobError, match="not the fault of single texts"):
        deaths.add(3, JobError("died"))


def test_what_an_earlier_call_left_is_known(tmp_path: Path) -> None:
    die(Deaths(str(tmp_path)), "a", "x", "y")
    deaths = Deaths(str(tmp_path))
    assert deaths.are_over(3)
    assert not deaths.are_over(4)
    assert (deaths.left_by("a"), deaths.left_by("b")) == ([3], [])


def test_a_chunk_whose_workers_have_ended_well_is_not_suspected(tmp_path: Path) -> None:
    with Suspects(Deaths(str(tmp_path)).attempt(3, "a")) as suspects:
        suspects.running("model", ["x"])
    assert not Deaths(str(tmp_path)).are_over(3)


def test_who_was_ended_has_not_died_of_its_rows(tmp_path: Path) -> None:
    deaths = Deaths(str(tmp_path))
    die(deaths, "ended", "x", alone=True)
    die(deaths, "dead", "y")
    deaths.withdraw("ended")
    assert (deaths.left_by("ended"), deaths.left_by("dead")) == ([], [3])
