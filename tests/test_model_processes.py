"""What a worker does with the processes of a model; `made_up_process` stands for these."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from sparkinfer.exceptions import ConfigError, DeviceError
from sparkinfer.models.backends import processes
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.processes import ProcessesRuntime
from sparkinfer.models.checkpoint import Checkpoint
from tests import made_up_process as asked
from tests.model_options import options_of

WAY = Acceleration("deepspeed", "float32", processes=2)


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "HOME", "tests.made_up_process:serve")
    monkeypatch.setattr(processes, "GRACE_S", 0.5)


@pytest.fixture
def runtime(classifier: Path) -> Iterator[ProcessesRuntime]:
    made = ProcessesRuntime(Checkpoint(classifier, options_of(), "cpu"), WAY)
    yield made
    made.close()


def ask(runtime: ProcessesRuntime, what: int) -> int:
    [row] = runtime.score({"input_ids": torch.tensor([[what]])}, lambda: None).to_pylist()
    return int(row["process"])


def children() -> set[int]:
    """Returns the processes that run a part of a model, beside whatever else tests have started."""
    found = set()
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "tests.made_up_process" in "".join(one.cmdline()):
                found.add(one.pid)
    return found


def test_the_first_process_tells_the_result(runtime: ProcessesRuntime) -> None:
    first = ask(runtime, asked.PLAIN)
    assert first in children()
    assert ask(runtime, asked.PLAIN) == first


def test_a_model_tells_its_vocabulary(classifier: Path) -> None:
    checkpoint = Checkpoint(classifier, options_of(), "cpu")
    ProcessesRuntime(checkpoint, WAY).close()
    assert checkpoint.vocabulary == 32


def test_what_all_raise_is_raised_as_it_is_and_they_go_on(runtime: ProcessesRuntime) -> None:
    first = ask(runtime, asked.PLAIN)
    with pytest.raises(IndexError, match="index 9 in a table of 8 rows"):
        ask(runtime, asked.ALL_FAIL)
    assert ask(runtime, asked.PLAIN) == first


def test_where_one_lacks_memory_the_others_are_not_waited_for(runtime: ProcessesRuntime) -> None:
    first = ask(runtime, asked.PLAIN)
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        ask(runtime, asked.FIRST_LACKS_MEMORY)
    assert not psutil.pid_exists(first)
    assert ask(runtime, asked.PLAIN) != first


def test_the_death_of_one_ends_the_others_and_the_worker(runtime: ProcessesRuntime) -> None:
    before = children()
    with pytest.raises(DeviceError, match=r"a process of the model has ended \(exit code 3\)"):
        ask(runtime, asked.SECOND_DIES)
    assert not before & children()


def test_one_that_is_killed_between_two_batches_is_told(runtime: ProcessesRuntime) -> None:
    os.kill(ask(runtime, asked.PLAIN), signal.SIGKILL)
    with pytest.raises(DeviceError, match=r"has ended \(signal 9"):
        ask(runtime, asked.PLAIN)


def test_results_that_differ_are_refused(runtime: ProcessesRuntime) -> None:
    with pytest.raises(DeviceError, match="made different results of one batch"):
        ask(runtime, asked.SECOND_DISAGREES)


def test_an_error_while_loading_is_the_same_here(classifier: Path) -> None:
    before = children()
    with pytest.raises(ConfigError, match="it is broken"):
        ProcessesRuntime(Checkpoint(classifier, options_of(prefix=asked.BROKEN), "cpu"), WAY)
    assert children() == before


_WORKER = """
import sys
from pathlib import Path
from sparkinfer.models.backends import processes
from sparkinfer.models.checkpoint import Checkpoint
from tests.model_options import options_of
from tests.test_model_processes import WAY
processes.HOME = "tests.made_up_process:serve"
runtime = processes.ProcessesRuntime(Checkpoint(Path(sys.argv[1]), options_of(), "cpu"), WAY)
print("started", flush=True)
sys.stdin.read()
"""


def test_processes_end_with_a_worker_that_is_killed(classifier: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(classifier)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"started\n"
        started = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
    assert len(started) == 2
    assert psutil.wait_procs(started, 10)[1] == []


def test_nothing_stays_behind_of_a_runtime_that_nobody_holds(classifier: Path) -> None:
    before = children()
    runtime = ProcessesRuntime(Checkpoint(classifier, options_of(), "cpu"), WAY)
    assert len(children() - before) == 2
    del runtime
    assert children() == before
