"""Runs the command, kills processes of it at random moments, gives it again until it is done."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.engines.horovod.launchers import has_horovod
from tests.chaos.checks import (
    Expected,
    Reader,
    check_done,
    has_lost_rows,
    read_output,
    recorded_files,
    visible_files,
)
from tests.chaos.victims import DRIVER, EXECUTOR, MARK, RANK, WORKER, Victims, end_marked
from tests.standalone_cluster import LOOPBACK, SHORT_LIVED_JVM, StandaloneCluster
from tests.tiny_models import sentences

ROWS, ROW_GROUP_ROWS, CHUNK_ROWS = 12_000, 150, 600

LAST_KILL_ROWS = 0.8 * ROWS
"""Where a run commits as it scores, each kill waits until a number of rows, drawn up to this one,
is done."""

MOST_DELAY_S = 1.5
"""From when that many are done and a victim is there to its death."""

TASK_ATTEMPTS = 4
"""Of Spark: so many kills of one task's workers fail the run, which is then given again."""

END_LIMIT_S = 60.0
"""From a rank's death to the end of the command."""

POLL_S = 0.05
RUN_TIMEOUT_S = 300.0
MOST_LAUNCHES = 40


@dataclass(frozen=True)
class Setup:
    """A way to run the job.

    Attributes:
        name: for people.
        commands: the arguments of `score` that say so; each launch takes the next ones, in turn.
        kinds: of victims there are, with the share of each in the kills of a long run.
        last_kill_rows: that may have to be done before a kill.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    kinds: dict[str, int]
    last_kill_rows: float = LAST_KILL_ROWS


@dataclass(frozen=True)
class Planned:
    """A kill that is to be.

    Attributes:
        kind: of the victim.
        from_rows: that have to be done.
        delay_s: from then on.
        index: of the victim among those of its kind, 0 to 1.
    """

    kind: str
    from_rows: float
    delay_s: float
    index: float


@dataclass(frozen=True)
class Kill:
    """A living process that was killed while rows were scored.

    Attributes:
        setup: name of the setup.
        kind: of process.
        pid: of the process.
        rows: that a reader of the output saw by then.
        after_s: seconds from the launch.
    """

    setup: str
    kind: str
    pid: int
    rows: int
    after_s: float


@dataclass(frozen=True)
class Launch:
    """One run of the command.

    Attributes:
        exit_code: of the command.
        message: the last line that it wrote.
        kills: of its processes.
        seconds: from the launch to the end.
        end_s: seconds from the last kill to the end.
    """

    exit_code: int
    message: str
    kills: tuple[Kill, ...]
    seconds: float
    end_s: float


LOCAL = Setup(
    "pandas_udf on local[2,4]",
    (("--engine", "pandas_udf", "--master", "local[2,4]"),),
    {WORKER: 9, DRIVER: 1},
)

LAUNCHERS = ("horovod", "torch") if has_horovod() else ("torch",)
RANKS = Setup(
    f"horovod on local[2,4] by {' and '.join(LAUNCHERS)}",
    tuple(
        (
            *("--engine", "horovod", "--master", "local[2,4]"),
            *("--set", f"horovod.launcher={launcher}"),
            *("--max-batch-tokens", "64"),  # else the ranks are done in a moment
        )
        for launcher in LAUNCHERS
    ),
    {WORKER: 4, RANK: 4, DRIVER: 2},
    last_kill_rows=0,
)


def on_cluster(cluster: StandaloneCluster) -> Setup:
    """Returns how to run the job on a cluster's executors."""
    conf = {
        "spark.driver.host": LOOPBACK,
        "spark.executor.memory": "512m",
        "spark.executor.extraJavaOptions": SHORT_LIVED_JVM,
    }
    settings = [
        word for pair in conf.items() for word in ("--set", "spark_conf.{}={}".format(*pair))
    ]
    return Setup(
        "pandas_udf on a cluster of two workers",
        (("--engine", "pandas_udf", "--master", cluster.url, *settings),),
        {WORKER: 6, EXECUTOR: 3, DRIVER: 1},
    )


def write_input(path: Path) -> Path:
    """Writes rows with distinct texts: equal ones would be scored once, and soon be done."""
    draw = random.Random(0)
    table = pa.table(
        {
            "id": range(ROWS),
            "text": [f"{text} {number}" for number, text in enumerate(sentences(ROWS))],
            "label": [draw.randrange(2) for _ in range(ROWS)],
        }
    )
    pq.write_table(table, path, row_group_size=ROW_GROUP_ROWS)
    return path


@contextlib.contextmanager
def marking() -> Iterator[str]:
    """Marks every process that is started while the context is open, and ends them at its end."""
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    try:
        yield mark
    finally:
        del os.environ[MARK]
        end_marked(mark)


class Chaos:
    """A job, run again and again through kills.

    Args:
        model: the model's folder.
        folder: receives input, outputs and logs.
        mark: that the processes have; see `marking`.
        tell: called with each kill and each launch, once it is over.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        mark: str,
        tell: Callable[[Kill | Launch], None] = lambda event: None,
    ) -> None:
        self._model = model
        self._folder = folder
        self._mark = mark
        self._tell = tell
        self._source = write_input(folder / "in.parquet")
        self._outputs = 0
        self.expected = self._undisturbed()

    def run(self, setup: Setup, kinds: Sequence[str], draw: random.Random) -> list[Launch]:
        """Kills a process of each kind, one after the other, and checks every output.

        An output that is done before the last kill is checked, and the next one begun.

        Returns:
            What was launched, with all the kills in it.
        """
        launches: list[Launch] = []
        while sum(len(launch.kills) for launch in launches) < len(kinds):
            done = sum(len(launch.kills) for launch in launches)
            launches += self._score(setup, kinds[done:], draw)
            if len(launches) > MOST_LAUNCHES + 2 * len(kinds):
                raise AssertionError(f"no {kinds[done]} was found to be killed: {launches}")
        return launches

    def _score(self, setup: Setup, kinds: Sequence[str], draw: random.Random) -> list[Launch]:
        """Returns the launches that it took until an output was done."""
        from_rows = sorted(draw.uniform(0, setup.last_kill_rows) for _ in kinds)
        plan = [
            Planned(*pair, draw.uniform(0, MOST_DELAY_S), draw.random())
            for pair in zip(kinds, from_rows, strict=True)
        ]
        self._outputs += 1
        output = self._folder / f"out-{self._outputs}"
        launches: list[Launch] = []
        with Reader(output, ROWS) as reader:
            while not launches or launches[-1].exit_code != 0:
                done = sum(len(launch.kills) for launch in launches)
                arguments = setup.commands[len(launches) % len(setup.commands)]
                launch = self._launch(setup, arguments, plan[done:], output, reader)
                self._tell(launch)
                check_launch(launch, output)
                reader.check()
                launches.append(launch)
            # A text that was alone in two processes that were killed is taken for the cause.
            if has_lost_rows(output):
                again = (*setup.commands[0], "--retry-errors")
                check_launch(self._launch(setup, again, (), output, reader), output)
        check_done(output, self.expected)
        return launches

    def _launch(
        self,
        setup: Setup,
        arguments: Sequence[str],
        plan: Sequence[Planned],
        output: Path,
        reader: Reader,
    ) -> Launch:
        """Runs the command once and kills what is planned, as far as the run lives for it."""
        victims = Victims(output, self._mark)
        log = output.with_suffix(f".{time.monotonic_ns()}.log")
        kills: list[Kill] = []
        started = last = time.monotonic()
        with self._started(arguments, output, log) as process:
            victims.belong_to(process.pid)
            for planned in plan:
                killed = _kill(process, victims, planned, reader)
                if killed is None:
                    break
                last = time.monotonic()
                kills.append(Kill(setup.name, planned.kind, killed, reader.rows, last - started))
                self._tell(kills[-1])
                if planned.kind in (DRIVER, RANK):
                    break
            exit_code = process.wait(RUN_TIMEOUT_S)
        ended = time.monotonic()
        return Launch(exit_code, _last_line(log), tuple(kills), ended - started, ended - last)

    @contextlib.contextmanager
    def _started(
        self, arguments: Sequence[str], output: Path, log: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Starts the command; it does not outlive the context."""
        command = [
            *(sys.executable, "-m", "sparkinfer", "score", *arguments),
            *("--model", self._model, "--input", self._source, "--output", output),
            *("--input-col", "text", "--label-col", "label"),
            *("--dtype", "float32", "--acceleration", "none", "--device", "cpu"),
            *("--set", f"chunks.target_rows={CHUNK_ROWS}"),
        ]
        # Not a pipe: what outlives a killed driver for a moment would hold it open.
        with log.open("wb") as written:
            process = subprocess.Popen(
                list(map(str, command)),
                env=os.environ | {"SPARK_LOCAL_IP": LOOPBACK, "JDK_JAVA_OPTIONS": SHORT_LIVED_JVM},
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _undisturbed(self) -> Expected:
        output, log = self._folder / "expected", self._folder / "expected.log"
        with self._started(("--engine", "local"), output, log) as process:
            if process.wait(RUN_TIMEOUT_S):
                raise RuntimeError(log.read_text())
        return read_output(output)


def _kill(
    process: subprocess.Popen[bytes], victims: Victims, planned: Planned, reader: Reader
) -> int | None:
    """Returns the pid of the process that was killed, None if the command ended before."""
    due = None
    while process.poll() is None:
        found = victims.at_work(planned.kind, far_enough=reader.rows >= planned.from_rows)
        if found and due is None:
            due = time.monotonic() + planned.delay_s
        if found and due is not None and time.monotonic() >= due:
            victim = found[int(planned.index * len(found))]
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                if planned.kind != RANK or victims.says_that_it_scores(victim.pid):
                    return victim.pid
        time.sleep(POLL_S)
    return None


def check_launch(launch: Launch, output: Path) -> None:
    """Raises AssertionError unless the command ended as it must after the kills in it."""
    kinds = [kill.kind for kill in launch.kills]
    if DRIVER in kinds:
        assert launch.exit_code == -9, launch
        return
    if RANK in kinds and launch.exit_code == 1:  # it had not begun to score
        assert launch.end_s < END_LIMIT_S, launch
        assert f"(process {launch.kills[-1].pid} on " in launch.message, launch
    elif len(kinds) < TASK_ATTEMPTS:
        assert launch.exit_code == 0, launch
    if launch.exit_code != 0:
        assert launch.exit_code == 1, launch
        assert launch.message.startswith("sparkinfer: error: "), launch
        assert visible_files(output) == recorded_files(output), launch


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
