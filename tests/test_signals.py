"""Signals to real commands and deaths of their JVM: what is said, exit codes, what is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.dataset as pads
import pytest

from sparkinfer import signals
from sparkinfer.cli import main
from sparkinfer.jobs.claims import read_holder
from tests.chaos.victims import MARK, end_marked, marked
from tests.made_up_engine import write_input

CHUNKS, CHUNK_ROWS = 60, 20
WAIT_S = 100.0
LEFT_FOR_S = 10.0
"""Time that the JVM and its workers may take to end after the command."""

GATEWAY = "org.apache.spark.deploy.SparkSubmit"

SPARK = ("--engine", "pandas_udf", "--master", "local[2]")
RANKS = ("--engine", "horovod", "--master", "local[2]", "--set", "horovod.launcher=torch")
LOCAL = ("--engine", "local")
LOCAL_PROCESSES = (*LOCAL, "--num-workers", "2")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_input(tmp_path / "in", files=1, row_groups=CHUNKS, rows=CHUNK_ROWS)


class Command:
    """A run of the command in a process group of its own; all its processes have its mark."""

    def __init__(self, source: Path, model: Path, *options: str) -> None:
        self.output = source.parent / "out"
        self._mark = uuid.uuid4().hex
        arguments = ["score", "--input", str(source), "--output", str(self.output)]
        arguments += ["--model", str(model), "--input-col", "text", "--dtype", "float32"]
        arguments += ["--progress", "none", "--max-batch-tokens", "16"]
        self.arguments = [*arguments, "--set", f"chunks.target_rows={CHUNK_ROWS}", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparkinfer", *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, MARK: self._mark},
        )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        end_marked(self._mark)
        self.process.communicate()

    def done(self) -> int:
        return len(list((self.output / "_sparkinfer" / "chunks").glob("*.json")))

    def jvms(self) -> list[psutil.Process]:
        """Returns Spark's JVM, and none of those that are only asked for something before."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children()
            of_java = [child for child in children if child.name() == "java"]
            return [child for child in of_java if GATEWAY in child.cmdline()]
        return []

    def rows_are_scored(self) -> bool:
        """Returns whether some chunks are done or ranks have begun."""
        ranks = self.output.glob("_sparkinfer/staging/*/engine/ranks/*/rank-*.json")
        return self.done() >= 2 or any(ranks)

    def wait_until(self, is_true: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_true():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def signal_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Returns exit code, stdout and stderr; asserts that no process of the run is left."""
        said, complained = self.process.communicate(timeout=WAIT_S)
        deadline = time.monotonic() + LEFT_FOR_S
        while left := list(marked(self._mark)):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        return self.process.returncode, said, complained

    def assert_released(self) -> None:
        holder = read_holder(str(self.output / "_sparkinfer" / "lease"))
        assert holder is not None
        assert holder.released
        assert not (self.output / "_sparkinfer" / "staging").exists()
        notes = self.output / "_sparkinfer" / "notes"
        assert not notes.exists() or not list(notes.iterdir())


def stopped_at(done: int) -> str:
    return (
        f"sparkinfer: stopped; {done} of {CHUNKS} chunks are done. Run the same command to resume\n"
    )


def assert_resumes(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    before = command.done()
    arguments = command.arguments[: command.arguments.index("--engine")]
    assert main([*arguments, *LOCAL]) == 0
    said = capsys.readouterr().out
    assert not before or f"{before * CHUNK_ROWS:,} rows were done by an earlier run" in said
    ids = pads.dataset(str(command.output), format="parquet").to_table(columns=["id"])["id"]
    assert sorted(ids.to_pylist()) == list(range(CHUNKS * CHUNK_ROWS))


def signal_alone(command: Command) -> None:
    command.process.send_signal(signal.SIGTERM)


def signal_group_and_process(command: Command) -> None:
    command.signal_group(signal.SIGTERM)
    command.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("engine", "send"),
    [
        (LOCAL, signal_alone),
        (LOCAL, signal_group_and_process),
        (LOCAL_PROCESSES, signal_group_and_process),
    ],
)
def test_sigterm_to_a_local_run_is_one_line_and_the_run_resumes(
    source: Path,
    classifier: Path,
    engine: tuple[str, ...],
    send: Callable[[Command], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Command(source, classifier, *engine) as command:
        command.wait_until(lambda: command.done() >= 2)
        send(command)
        assert command.end() == (143, "", stopped_at(command.done()))
    command.assert_released()
    assert_resumes(command, capsys)


@pytest.mark.spark
@pytest.mark.parametrize(
    ("engine", "number", "code"),
    [
        pytest.param(SPARK, signal.SIGTERM, 143, id="tasks"),
        pytest.param(RANKS, signal.SIGINT, 130, id="ranks", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_group_of_a_run_on_spark_is_one_line_and_the_run_resumes(
    source: Path,
    classifier: Path,
    engine: tuple[str, ...],
    number: int,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Command(source, classifier, *engine) as command:
        command.wait_until(command.rows_are_scored)
        command.signal_group(number)
        command.signal_group(number)
        assert command.end() == (code, "", stopped_at(command.done()))
    command.assert_released()
    assert_resumes(command, capsys)


@pytest.mark.spark
@pytest.mark.parametrize(
    ("when", "number", "code"),
    [("the JVM starts", signal.SIGTERM, 143), ("the gate runs", signal.SIGINT, 130)],
)
def test_a_signal_during_the_start_is_one_line(
    source: Path, classifier: Path, when: str, number: int, code: int
) -> None:
    with Command(source, classifier, *SPARK) as command:
        command.wait_until(command.jvms)
        if when == "the gate runs":
            command.wait_until((command.output / "_sparkinfer" / "lease").exists)
        command.signal_group(number)
        assert command.end() == (code, "", "sparkinfer: stopped; nothing was done yet\n")


def test_ctrl_c_while_modules_load_shows_no_traceback(source: Path, classifier: Path) -> None:
    with Command(source, classifier, *LOCAL) as command:
        command.wait_until(lambda: "numpy" in Path(f"/proc/{command.process.pid}/maps").read_text())
        command.process.send_signal(signal.SIGINT)
        code, _, complained = command.end()
    assert code in (130, -signal.SIGINT)
    assert complained in ("", "sparkinfer: stopped; nothing was done yet\n")


def test_a_signal_that_the_command_was_started_to_ignore_is_ignored(
    source: Path, classifier: Path
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        command = Command(source, classifier, *LOCAL)
    finally:
        signal.signal(signal.SIGHUP, before)
    with command:
        command.wait_until(lambda: command.done() >= 2)
        command.signal_group(signal.SIGHUP)
        assert command.end()[0] == 0


@pytest.mark.spark
@pytest.mark.parametrize("when", ["start", "middle"])
def test_a_jvm_that_is_killed_is_told_with_what_to_do(
    source: Path, classifier: Path, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Command(source, classifier, *SPARK) as command:
        command.wait_until(command.jvms)
        if when == "middle":
            command.wait_until(lambda: command.done() >= 2)
        [jvm] = command.jvms()
        jvm.kill()
        code, said, complained = command.end()
    assert (code, said) == (1, "")
    assert complained == (
        f"sparkinfer: error: Spark's JVM (process {jvm.pid}) was killed by signal 9, perhaps "
        "because this machine's memory was used up; run the same command to resume\n"
    )
    if when == "middle":
        command.assert_released()
        assert_resumes(command, capsys)


@pytest.fixture
def heard() -> Iterator[None]:
    with signals.stops_heard():
        yield


def stop_and_tidy_up(tidied: list[str]) -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGINT)
        tidied.append("all")


def test_a_second_signal_is_not_heard_while_the_first_is_on_its_way(heard: None) -> None:
    tidied: list[str] = []
    with pytest.raises(signals.Stopped):
        stop_and_tidy_up(tidied)
    assert tidied == ["all"]
    assert signals.asked_to_end() == signal.SIGTERM


def test_a_stop_that_gets_lost_is_raised_again(
    heard: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "LOOK_EVERY_S", 0.05)
    with contextlib.suppress(signals.Stopped):  # as in a `__del__`
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(signals.Stopped):
        time.sleep(WAIT_S)


def test_a_way_out_that_hangs_ends_the_process() -> None:
    code = (
        "import signal, time\n"
        "from sparkinfer import signals\n"
        "signals.WAY_OUT_S = 0.2\n"
        "signals.LOOK_EVERY_S = 0.1\n"
        "with signals.stops_heard():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    finally:\n"
        "        time.sleep(100)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 143
    assert ended.stderr == (
        "sparkinfer: stopped, without waiting for what had not ended after 0.2 s; run the same "
        "command to resume\n"
    )


def test_handlers_of_a_library_do_not_replace_ours(heard: None) -> None:
    with signals.handlers_kept():
        signal.signal(signal.SIGINT, lambda *_: None)
    with pytest.raises(signals.Stopped):
        signal.raise_signal(signal.SIGINT)


def test_handlers_are_as_they_were_at_the_end() -> None:
    before = [signal.getsignal(number) for number in signals.ASKS_TO_END]
    with signals.stops_heard():
        pass
    assert [signal.getsignal(number) for number in signals.ASKS_TO_END] == before


class StoppedAtItsEnd:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_gets_lost_is_raised_again_and_not_shown(
    heard: None, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = [StoppedAtItsEnd()]
    dropped.clear()
    with pytest.raises(signals.Stopped):
        threading.Event().wait(WAIT_S)
    assert capsys.readouterr().err == ""
