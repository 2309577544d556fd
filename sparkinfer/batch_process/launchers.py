"""What starts the ranks: processes of this machine, Spark tasks, or the horovod engine's launcher.

Each is a `Launcher` of that engine: it starts all ranks together and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkinfer.batch_process.local_rank import FAILED, message
from sparkinfer.engines.horovod.placement import Placement, RankWork
from sparkinfer.exceptions import ConfigError, JobError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from sparkinfer.engines.horovod.launchers import Launcher


_RANK = """\
import sys
sys.path[:] = {path!r}
from sparkinfer.batch_process.local_rank import main
main()
"""


class RankDiedError(JobError):
    """A rank was killed, maybe before it could tell that it had started."""


class LocalLauncher:
    """A process of this machine for each rank."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._cancelled = False
        self._lock = threading.Lock()

    def check(self, kind: str) -> None:
        """Does nothing: it works everywhere."""

    def launch(self, job: RankWork, kind: str) -> None:
        """Runs the ranks; if one fails or dies, the others are ended; see `Launcher`."""
        ranks = range(job.world_size)
        self._processes, self._cancelled = [], False
        with ThreadPoolExecutor(job.world_size) as pool:
            try:
                running = {
                    pool.submit(self._run, job, Placement(rank, rank, job.world_size))
                    for rank in ranks
                }
                self._wait(running)
            finally:
                self.cancel()

    def cancel(self) -> None:
        """Ends the ranks; see `Launcher`."""
        with self._lock:
            self._cancelled = True
            for process in self._processes:
                process.kill()

    def _wait(self, running: set[Future[int]]) -> None:
        """Returns when all ranks have ended.

        Raises:
            RankDiedError: the first of them to fail was ended by a signal.
        """
        died = 0
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            failed = [one.result() for one in done if one.result() != 0]
            if failed and not self._cancelled:
                died = min(failed)
                self.cancel()
        if died < 0:
            name = signal.Signals(-died).name
            raise RankDiedError(f"a rank was ended by {name}: run the same call again")

    def _run(self, job: RankWork, placement: Placement) -> int:
        """Returns the exit code of a rank."""
        with self._lock:
            if self._cancelled:
                return FAILED
            here = Path.cwd()
            process = subprocess.Popen(
                [sys.executable, "-c", _RANK.format(path=[one or str(here) for one in sys.path])],
                stdin=subprocess.PIPE,
                start_new_session=True,  # signals to the driver's group are the driver's to hear
            )
            self._processes.append(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which its exit code says
            process.stdin.write(message(job, placement))
            process.stdin.flush()
        code = process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return code


class SparkTaskLauncher:
    """A Spark task for each rank, in a barrier stage: all of them run together.

    Args:
        spark: the session.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark
        self._group = f"sparkinfer-ranks-{uuid.uuid4().hex}"

    def check(self, kind: str) -> None:
        """Raises if Spark does not start barrier stages; see `Launcher`."""
        from sparkinfer.spark.slots import is_dynamic

        if is_dynamic(self._spark):
            raise ConfigError(
                "engine='spark' with spark.dynamicAllocation.enabled=true: all ranks run together, "
                "in a barrier stage, which Spark then rejects; set it to false"
            )

    def launch(self, job: RankWork, kind: str) -> None:
        """Runs the ranks; see `Launcher`."""
        from sparkinfer.spark.job_threads import in_job_thread

        count = job.world_size

        def run(batches: Iterable[Any]) -> Iterator[Any]:
            from sparkinfer.spark.accelerators import assigned_gpu

            for batch in batches:
                for rank in batch["id"]:
                    job.run(Placement(int(rank), 0, count, assigned_gpu()))
            yield from ()

        one_each = self._spark.range(0, count, 1, count)
        ranks = one_each.mapInPandas(run, "id long", barrier=True)
        in_job_thread(self._spark, ranks.collect, self._group)

    def cancel(self) -> None:
        """Ends the ranks; see `Launcher`."""
        from sparkinfer.spark.classic import is_classic

        if is_classic(self._spark):
            self._spark.sparkContext.cancelJobGroup(self._group)
        else:
            self._spark.interruptTag(self._group)


class HorovodLauncher:
    """The horovod engine's launcher, which leaves the signals to this package.

    Args:
        spark: a classic session.
        start_timeout_s: seconds within which Spark must start all ranks.
    """

    def __init__(self, spark: SparkSession, start_timeout_s: int) -> None:
        from sparkinfer.engines.horovod.launchers import LAUNCHERS, choose_launcher

        self._launcher: Launcher = LAUNCHERS[choose_launcher("auto")](spark, start_timeout_s)
        self.check, self.cancel = self._launcher.check, self._launcher.cancel

    def launch(self, job: RankWork, kind: str) -> None:
        """Runs the ranks; see `Launcher`."""
        with _signals_left_alone():
            self._launcher.launch(job, kind)


@contextlib.contextmanager
def _signals_left_alone() -> Iterator[None]:
    """Keeps Horovod from handling SIGINT and SIGTERM, upon which it ends the ranks at once."""
    try:
        from horovod.runner import gloo_run
    except ImportError:  # another launcher is used
        yield
        return
    before = gloo_run.register_shutdown_event
    gloo_run.register_shutdown_event = threading.Event
    try:
        yield
    finally:
        gloo_run.register_shutdown_event = before
