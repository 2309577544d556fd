"""kill -9 and signals to real processes of `torch_batch_process`, at chosen places."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sparkinfer
from tests.batch_process_calls import RANKS, STEPS, call, check_whole
from tests.made_up_processor import Journal


def times_processed(tmp_path: Path, rank: int, step: int) -> int:
    journal = Journal(tmp_path / "journal")
    return sum(one == step for one, _ in journal.batches(rank))


@pytest.mark.parametrize("place", ["init", "batch:1:3", "checkpoint:2:1", "finish:0"])
def test_ranks_start_again_when_one_is_killed(tmp_path: Path, place: str) -> None:
    done = call(tmp_path, {place: "kill"})
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path)
    if place == "batch:1:3":
        assert [times_processed(tmp_path, rank, 1) for rank in range(RANKS)] == [1, 1, 1]


@pytest.mark.parametrize(
    "place",
    [
        "batch:1:3",
        pytest.param("checkpoint:2:1", marks=pytest.mark.slow),
        "checkpoint:0:3",
        "finish:1",
    ],
)
def test_the_same_call_goes_on_after_the_driver_was_killed(tmp_path: Path, place: str) -> None:
    killed = call(tmp_path, {place: "kill driver"})
    assert killed.returncode == -9
    done = call(tmp_path, {})
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path)
    committed = 1 if place == "checkpoint:2:1" else 2
    if committed == 2:
        assert [times_processed(tmp_path, rank, 1) for rank in range(RANKS)] == [1, 1, 1]


def test_a_rank_that_is_killed_before_it_has_started_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "first = sys.argv == ['-c'] and not os.path.exists(here := __file__ + '.once')\n"
        "if first:\n"
        "    open(here, 'x').close()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    done = call(tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert "a rank was ended by SIGKILL" in done.stderr
    check_whole(tmp_path)


def test_a_signal_pauses_after_the_step_at_hand_and_nothing_is_repeated(tmp_path: Path) -> None:
    loader = {"dataloader_kwargs": {"num_workers": 1}, "checkpoint_interval": 100}
    paused = call(tmp_path, {"batch:1:2": "stop driver"}, **loader)
    assert paused.returncode == 1
    assert "paused after" in paused.stderr
    assert "run the same call to resume" in paused.stderr
    run = sparkinfer.read_batch_run(str(tmp_path / "out"))
    assert not run.finished
    journal = Journal(tmp_path / "journal")
    assert not any(journal.events(rank, "finish") for rank in range(RANKS))
    done = call(tmp_path, {}, **loader)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path)
    for rank in range(RANKS):
        assert [step for step, _ in journal.batches(rank)] == list(range(STEPS))
