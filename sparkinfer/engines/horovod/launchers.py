"""What starts the ranks: `horovod.spark`, Databricks' `HorovodRunner` or `TorchDistributor`.

A launcher starts all ranks at once, each a process beside a Spark task of its own, runs one
function in each of them and returns when they have ended. None of them says reliably why a rank
ended; that is what `supervision` is for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sparkinfer.engines.horovod.rank import Placement, RankJob, run_rank
from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.spark.accelerators import GPUS_PER_TASK

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


logger = logging.getLogger(__name__)

IGNORE_SSL = "pytorch.spark.distributor.ignoreSsl"
"""Setting by which TorchDistributor is told that plain connections will do."""


class Launcher(Protocol):
    """Starts ranks."""

    def check(self, kind: str) -> None:
        """Raises if this launcher cannot work here.

        Args:
            kind: what the ranks run on, `cpu` or `cuda`.

        Raises:
            EngineUnavailableError: a package is not installed.
            ConfigError: it is called in a way that it does not support.
        """

    def launch(self, job: RankJob, kind: str) -> None:
        """Runs `run_rank(job, ...)` in `job.world_size` ranks and returns when they have ended.

        Raises:
            Exception: whatever the launcher raises when a rank or the start fails.
        """

    def cancel(self) -> None:
        """Ends the ranks of a launch that is going on; called from another thread."""


class HorovodSparkLauncher:
    """`horovod.spark.run` over gloo.

    Args:
        spark: a classic session.
        start_timeout_s: in which Spark has to start all tasks.
    """

    def __init__(self, spark: SparkSession, start_timeout_s: int) -> None:
        self._spark = spark
        self._start_timeout_s = start_timeout_s

    def check(self, kind: str) -> None:
        """Raises if this launcher cannot work here; see `Launcher`."""
        if not has_horovod():
            raise EngineUnavailableError(
                "horovod.launcher='horovod': Horovod with its torch part is not installed; run "
                "scripts/install_horovod.py and pip install '.[horovod]' in a clone of the "
                "package, or use --set horovod.launcher=torch"
            )
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError(
                f"engine='horovod' in thread {threading.current_thread().name!r}: horovod.spark "
                "installs signal handlers, which only the main thread may; call it from there, or "
                "use --set horovod.launcher=torch"
            )

    def launch(self, job: RankJob, kind: str) -> None:
        """Runs the ranks; see `Launcher`."""
        import horovod.spark

        with _signals_heard(), _thread_errors_logged():
            horovod.spark.run(
                horovod_rank,
                args=(job,),
                num_proc=job.world_size,
                start_timeout=self._start_timeout_s,
                use_gloo=True,
                verbose=0,
                executable=os.environ.get("PYSPARK_PYTHON", sys.executable),
            )

    def cancel(self) -> None:
        """Ends the ranks; see `Launcher`."""
        from horovod.spark.driver import job_id

        self._spark.sparkContext.cancelJobGroup(f"horovod.spark.run.{job_id.JOB_ID}")


class _JobGroupLauncher:
    """A launcher whose ranks hang on Spark jobs that this thread starts, in a group of their own.

    Args:
        spark: a classic session.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark
        self._group = f"sparkinfer-ranks-{uuid.uuid4().hex}"

    def cancel(self) -> None:
        """Ends the ranks; see `Launcher`."""
        self._spark.sparkContext.cancelJobGroup(self._group)


class HorovodRunnerLauncher(_JobGroupLauncher):
    """Databricks' `HorovodRunner`, part of its ML runtimes up to 15.4 LTS."""

    def check(self, kind: str) -> None:
        """Raises if this launcher cannot work here; see `Launcher`."""
        if importlib.util.find_spec("sparkdl") is None:
            raise EngineUnavailableError(
                "horovod.launcher='horovod_runner': the package sparkdl, which Databricks ML "
                "runtimes up to 15.4 LTS bring, is not installed; use --set horovod.launcher=torch"
            )

    def launch(self, job: RankJob, kind: str) -> None:
        """Runs the ranks; see `Launcher`."""
        from sparkdl import HorovodRunner

        with _job_group_set(self._spark, self._group):
            runner = HorovodRunner(np=job.world_size, driver_log_verbosity="log_callback_only")
            runner.run(horovod_rank, job=job)


class TorchLauncher(_JobGroupLauncher):
    """pyspark's `TorchDistributor`; it needs torch and nothing else."""

    def check(self, kind: str) -> None:
        """Raises if this launcher cannot work here; see `Launcher`."""
        conf = self._spark.conf
        other = "use --set horovod.launcher=horovod" if has_horovod() else "use --engine pandas_udf"
        gpus = conf.get(GPUS_PER_TASK, None)
        if kind == "cuda" and gpus != "1":
            raise ConfigError(
                f"horovod.launcher='torch' with {GPUS_PER_TASK}={gpus}: TorchDistributor takes the "
                f"GPUs that Spark schedules, one for each task; set it to 1, or {other}"
            )
        if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
            raise ConfigError(
                "horovod.launcher='torch' with spark.dynamicAllocation.enabled=true: "
                f"TorchDistributor starts a barrier stage, which Spark then refuses; {other}"
            )
        if conf.get("spark.ssl.enabled", "false") == "true" and not _ignores_ssl(conf):
            raise ConfigError(
                "horovod.launcher='torch' with spark.ssl.enabled=true: TorchDistributor does not "
                f"encrypt; set {IGNORE_SSL}=true to run it all the same, or {other}"
            )

    def launch(self, job: RankJob, kind: str) -> None:
        """Runs the ranks; see `Launcher`."""
        from pyspark.ml.torch.distributor import TorchDistributor

        with _job_group_set(self._spark, self._group):
            distributor = TorchDistributor(
                num_processes=job.world_size, local_mode=False, use_gpu=kind == "cuda"
            )
            distributor.logger.setLevel(logging.WARNING)
            distributor.run(torch_rank, job)


LAUNCHERS: dict[str, Callable[[SparkSession, int], Launcher]] = {
    "horovod": HorovodSparkLauncher,
    "horovod_runner": lambda spark, _: HorovodRunnerLauncher(spark),
    "torch": lambda spark, _: TorchLauncher(spark),
}


def choose_launcher(wanted: str) -> str:
    """Returns the name of the launcher that is used; `auto` takes the first that is installed."""
    if wanted != "auto":
        return wanted
    if importlib.util.find_spec("sparkdl") is not None and has_horovod():
        return "horovod_runner"
    return "horovod" if has_horovod() else "torch"


def has_horovod() -> bool:
    """Returns whether Horovod is installed and was built for torch; imports neither."""
    found = importlib.util.find_spec("horovod")
    if found is None or not found.submodule_search_locations:
        return False
    spec = importlib.util.find_spec("horovod.torch")
    locations = (spec.submodule_search_locations or []) if spec is not None else []
    return any(list(Path(folder).glob("mpi_lib*.so")) for folder in locations)


def _ignores_ssl(conf: Any) -> bool:
    return bool(conf.get(IGNORE_SSL, "false") == "true")


def horovod_rank(job: RankJob) -> None:
    """What Horovod runs in each rank."""
    run_rank(job, horovod_placement())


def horovod_placement() -> Placement:
    """Returns the rank's place in the world, without connecting it to the others where possible.

    Horovod's launcher says it in the environment. `hvd.init` would say it too, but it connects
    every rank with every other, which scoring needs nowhere, and a rank that is gone would then
    trouble the rest. It is asked only where a launcher of another kind set nothing.
    """
    names = ("HOROVOD_RANK", "HOROVOD_LOCAL_RANK", "HOROVOD_SIZE")
    if all(name in os.environ for name in names):
        rank, local_rank, world_size = (int(os.environ[name]) for name in names)
        return Placement(rank, local_rank, world_size, _gpu_of_horovod_task())
    import horovod.torch as hvd

    hvd.init()
    placement = Placement(hvd.rank(), hvd.local_rank(), hvd.size(), _gpu_of_horovod_task())
    hvd.shutdown()
    return placement


def torch_rank(job: RankJob) -> None:
    """What torch's launcher runs in each rank; each is a world of its own for torch."""
    rank, local_rank, world_size = (
        int(os.environ.pop(name)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    )
    # Replicas do not talk to each other: a library that looks for a world must find none.
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "GROUP_RANK"):
        os.environ.pop(name, None)
    # CUDA_VISIBLE_DEVICES names the task's GPU, unless it was set for the executors before.
    run_rank(job, Placement(rank, local_rank, world_size))


def _gpu_of_horovod_task() -> str | None:
    """Returns the GPU that Spark assigned to this rank's task, None where there is none."""
    with contextlib.suppress(ImportError):
        from horovod.spark.task import get_available_devices

        devices = get_available_devices()
        return str(devices[0]) if devices else None
    return None


@contextlib.contextmanager
def _signals_heard() -> Iterator[None]:
    """Raises KeyboardInterrupt at the end if SIGINT or SIGTERM came meanwhile.

    `horovod.spark.run` takes both for itself, ends the ranks and raises as if one had failed; it
    leaves its handlers behind, too.
    """
    taken = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in taken}
    heard, told = socket.socketpair()
    with heard, told:
        heard.setblocking(False)
        told.setblocking(False)
        descriptor = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            with contextlib.suppress(BlockingIOError):
                if set(heard.recv(4096)) & set(taken):
                    raise KeyboardInterrupt


@contextlib.contextmanager
def _thread_errors_logged() -> Iterator[None]:
    """Keeps the traceback of Horovod's Spark thread out of the run's output.

    The thread raises what it has already told its launcher, or that it was cancelled.
    """
    before = threading.excepthook

    def log(raised: threading.ExceptHookArgs) -> None:
        if raised.thread is not None and "run_spark" in raised.thread.name:
            logger.debug("Horovod's Spark thread ended: %r", raised.exc_value)
        else:
            before(raised)

    threading.excepthook = log
    try:
        yield
    finally:
        threading.excepthook = before


@contextlib.contextmanager
def _job_group_set(spark: SparkSession, group: str) -> Iterator[None]:
    """Puts the Spark jobs of this thread into a group, so that they can be cancelled."""
    context: Any = spark.sparkContext
    keys = ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel")
    before = {key: context.getLocalProperty(key) for key in keys}
    context.setJobGroup(group, "sparkinfer ranks", interruptOnCancel=True)
    try:
        yield
    finally:
        for key, value in before.items():
            context.setLocalProperty(key, value)
