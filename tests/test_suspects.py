"""Notes of what is about to run, and what is read from those of the dead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from sparkinfer.exceptions import DeviceError
from sparkinfer.storage import names_in
from sparkinfer.workers.suspects import Attempt, Known, Suspects, read_known


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "notes")
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/notes"


def attempt(folder: str, launch: str, part: int = 0, number: int = 0) -> Attempt:
    return Attempt(folder, "00000003", launch, part, number, has_predecessor=True)


def known(folder: str) -> tuple[set[str], set[str]]:
    found = read_known(attempt(folder, "driver"))
    return set(found.suspected), set(found.deadly)


def test_what_ran_last_in_each_lane_is_suspected(folder: str) -> None:
    suspects = Suspects(attempt(folder, "a"))
    suspects.running("tokenizer", ["t1", "t2"])
    suspects.running("model", ["m1"])
    suspects.running("model", ["m2", "m3"])
    assert known(folder) == ({"t1", "t2", "m2", "m3"}, set())
    suspects.running("tokenizer", ())
    assert known(folder) == ({"m2", "m3"}, set())


def test_what_ran_alone_is_deadly_and_what_a_batch_of_one_ran_is_not(folder: str) -> None:
    Suspects(attempt(folder, "a")).running("model", ["x", "y"])
    Suspects(attempt(folder, "b")).running("model", ["x"], alone=True)
    Suspects(attempt(folder, "c")).running("model", ["z"])
    assert known(folder) == ({"y", "z"}, {"x"})


def run_and_raise(folder: str, error: BaseException) -> None:
    with Suspects(attempt(folder, "a")) as suspects:
        suspects.running("model", ["x"])
        raise error


def test_what_is_deadly_is_told_by_where_others_survived(folder: str) -> None:
    Suspects(attempt(folder, "a")).running("model", ["x"], alone=True)
    tokenizing = Suspects(attempt(folder, "b"))
    tokenizing.running("tokenizer", ["y"], alone=True)
    tokenizing.running("tokenizer", ["z"])
    assert read_known(attempt(folder, "driver")).unexcepted == 1
    survived = Suspects(attempt(folder, "c"))
    survived.running("model", ["y"], alone=True)
    survived.running("model", ())
    survived.running("model", ["z"], alone=True)
    found = read_known(attempt(folder, "driver"))
    assert (found.deadly, found.unexcepted) == ({"x", "z"}, 0)


@pytest.mark.parametrize("error", [ValueError("no"), GeneratorExit(), KeyboardInterrupt()])
def test_who_ends_takes_its_notes_along(folder: str, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_and_raise(folder, error)
    assert names_in(folder) == []


TOLD_TO_END = """
import sys, time
from sparkinfer.engines.horovod.launchers import _end_on_request
from sparkinfer.workers.suspects import Attempt, Suspects

_end_on_request()
with Suspects(Attempt(*sys.argv[1:], "a")) as suspects:
    suspects.running("model", ["x"], alone=True)
    print("runs", flush=True)
    time.sleep(100)
"""


def test_a_rank_that_is_told_to_end_takes_its_notes_along(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOLD_TO_END, str(tmp_path), "00000003"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as rank:
        assert rank.stdout is not None
        rank.stdout.readline()
        assert known(str(tmp_path)) == (set(), {"x"})
        rank.terminate()
        assert rank.wait(60) == 143
    assert names_in(str(tmp_path)) == []


def test_who_has_broken_its_device_and_is_about_to_die_leaves_them(folder: str) -> None:
    with pytest.raises(DeviceError):
        run_and_raise(folder, DeviceError("broken"))
    assert known(folder) == ({"x"}, set())


def test_notes_of_workers_that_may_be_alive_are_not_read(folder: str) -> None:
    for part, number in ((0, 0), (0, 1), (1, 0)):
        Suspects(attempt(folder, "same", part, number)).running("model", [f"{part}{number}"])
    Suspects(attempt(folder, "before", 7)).running("model", ["earlier"])
    seen = [Suspects(attempt(folder, "same", 0, number)).known.suspected for number in (0, 1, 2)]
    assert seen == [{"earlier"}, {"earlier", "00"}, {"earlier", "00", "01"}]


def test_notes_of_other_chunks_are_not_read(folder: str) -> None:
    other = Attempt(folder, "00000004", "a", has_predecessor=True)
    Suspects(other).running("model", ["x"])
    assert known(folder) == (set(), set())


def test_a_first_attempt_reads_nothing_and_notes_where_that_is_cheap(folder: str) -> None:
    Suspects(attempt(folder, "before")).running("model", ["x"])
    first = Suspects(Attempt(folder, "00000003", "a"))
    assert first.known == Known()
    assert first.is_noting is not folder.startswith("memory")


def test_without_an_attempt_nothing_is_noted() -> None:
    with Suspects() as suspects:
        suspects.running("model", ["x"])
        assert (suspects.is_noting, bool(suspects.known)) == (False, False)


def test_a_line_that_is_half_written_does_not_count(tmp_path: Path) -> None:
    lines = [json.dumps(["model", False, ["x"]]), '["model", false, ["y']
    (tmp_path / "00000003-a-0-0").write_text("\n".join(lines))
    (tmp_path / "00000003-b-0-0").write_text("nonsense\n[]\n")
    assert known(str(tmp_path)) == ({"x"}, set())


def test_a_disk_that_takes_no_notes_fails_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspects = Suspects(Attempt(str(tmp_path), "00000003", "a"))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", refuse)
    suspects.running("model", ["x"])
    assert not suspects.is_noting
