"""What starts the ranks: `horovod.spark`, Databricks' `HorovodRunner` or `TorchDistributor`.

A launcher starts all ranks together, each as a process next to its own Spark task, runs one
function in each of them and returns when they have ended. No launcher reliably reports why a rank
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

from sparkinfer.engines.horovod.placement import Placement, RankWork
from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.logs import get_logger
from sparkinfer.spark.accelerators import GPUS_PER_TASK
from sparkinfer.spark.job_threads import in_job_thread
from sparkinfer.workers.suspects import withdraw_all

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


logger = get_logger(__name__)

IGNORE_SSL = "pytorch.spark.distributor.ignoreSsl"
"""Setting that tells TorchDistributor that unencrypted connections are acceptable."""


class Launcher(Protocol):
    """Starts ranks."""

    def check(self, kind: str) -> None:
        """Raises if this launcher cannot work here.

        Args:
            kind: what the ranks run on, `cpu` or `cuda`.

        Raises:
            EngineUnavailableError: a package is not installed.
            ConfigError: the launcher does not support how it is called or configured.
        """

    def launch(self, job: RankWork, kind: str) -> None:
        """Runs `job.run` in `job.world_size` ranks and returns when they have ended.

        Raises:
            Exception: whatever the launcher raises when a rank or the start fails.
        """

    def cancel(self) -> None:
        """Ends the ranks of the current launch; called from another thread."""


class HorovodSparkLauncher:
    """`horovod.spark.run` over gloo.

    Args:
        spark: a classic session.
        start_timeout_s: seconds within which Spark must start all tasks.
    """

    def __init__(self, spark: SparkSession, start_timeout_s: int) -> None:
        self._spark = spark
        self._start_timeout_s = start_timeout_s

    def check(self, kind: str) -> None:
        """Raises if this launcher cannot work here; see `Launcher`."""
        if not has_horovod():
            raise EngineUnavailableError(
                "horovod.launcher='horovod': Horovod with its torch part is not installed; run "
                "scripts/install_horovod.py and pip install '.[horovod]' (the extra [horovod]) in "
                "a clone of the package, or use --set horovod.launcher=torch"
            )
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError(
                f"engine='horovod' in thread {threading.current_thread().name!r}: horovod.spark "
                "installs signal handlers, which only the main thread may; call it from there, or "
                "use --set horovod.launcher=torch"
            )

    def launch(self, job: RankWork, kind: str) -> None:
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
    """A launcher whose ranks belong to Spark jobs that this thread starts, in their own job group.

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
                "horovod.launcher='horovod_runner': the package sparkdl, part of Databricks ML "
                "runtimes up to 15.4 LTS, is not installed; use --set horovod.launcher=torch"
            )

    def launch(self, job: RankWork, kind: str) -> None:
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
                f"horovod.launcher='torch' with {GPUS_PER_TASK}={gpus}: TorchDistributor uses the "
                f"GPUs that Spark schedules, one per task; set it to 1, or {other}"
            )
        if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
            raise ConfigError(
                "horovod.launcher='torch' with spark.dynamicAllocation.enabled=true: "
                f"TorchDistributor starts a barrier stage, which Spark then rejects; {other}"
            )
        if conf.get("spark.ssl.enabled", "false") == "true" and not _ignores_ssl(conf):
            raise ConfigError(
                "horovod.launcher='torch' with spark.ssl.enabled=true: TorchDistributor does not "
                f"encrypt; set {IGNORE_SSL}=true to run it anyway, or {other}"
            )

    def launch(self, job: RankWork, kind: str) -> None:
        """Runs the ranks; see `Launcher`."""
        from pyspark.ml.torch.distributor import TorchDistributor

        distributor = TorchDistributor(
            num_processes=job.world_size, local_mode=False, use_gpu=kind == "cuda"
        )
        distributor.logger.setLevel(logging.WARNING)
        in_job_thread(self._spark, lambda: distributor.run(torch_rank, job), self._group)


LAUNCHERS: dict[str, Callable[[SparkSession, int], Launcher]] = {
    "horovod": HorovodSparkLauncher,
    "horovod_runner": lambda spark, _: HorovodRunnerLauncher(spark),
    "torch": lambda spark, _: TorchLauncher(spark),
}


def choose_launcher(wanted: str) -> str:
    """Returns the name of the launcher to use; `auto` picks the first that is installed."""
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


def horovod_rank(job: RankWork) -> None:
    """What Horovod runs in each rank."""
    _end_on_request()
    job.run(horovod_placement())


def _end_on_request() -> None:
    """Has SIGTERM, with which launchers end a rank because of another, end it without a trace.

    A shell around it would print what killed it, and its notes would name texts that are innocent.
    """

    def end(*_: object) -> None:
        withdraw_all()
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def horovod_placement() -> Placement:
    """Returns the rank's placement, without connecting it to other ranks where possible.

    Horovod's launcher puts it in the environment. `hvd.init` would provide it too, but it connects
    all ranks with each other, which scoring does not need, and a rank that dies would then affect
    the rest. It is used only if another kind of launcher set no variables.
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


def torch_rank(job: RankWork) -> None:
    """What torch's launcher runs in each rank; to torch, each is its own world."""
    _end_on_request()
    rank, local_rank, world_size = (
        int(os.environ.pop(name)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    )
    # Replicas do not communicate: a library that looks for a world must find none.
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "GROUP_RANK"):
        os.environ.pop(name, None)
    # CUDA_VISIBLE_DEVICES names the task's GPU, unless it was already set for the executors.
    job.run(Placement(rank, local_rank, world_size))


def _gpu_of_horovod_task() -> str | None:
    """Returns the GPU that Spark assigned to this rank's task, None if there is none."""
    with contextlib.suppress(ImportError):
        from horovod.spark.task import get_available_devices

        devices = get_available_devices()
        return str(devices[0]) if devices else None
    return None


@contextlib.contextmanager
def _signals_heard() -> Iterator[None]:
    """Raises SIGINT or SIGTERM again at the end if it arrived meanwhile.

    `horovod.spark.run` handles both itself, ends the ranks and raises as if one had failed; it also
    leaves its handlers installed.
    """
    taken = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in taken}
    heard, sent = socket.socketpair()
    with heard, sent:
        heard.setblocking(False)
        sent.setblocking(False)
        descriptor = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            with contextlib.suppress(BlockingIOError):
                for arrived in set(heard.recv(4096)) & set(taken):
                    signal.raise_signal(arrived)


@contextlib.contextmanager
def _thread_errors_logged() -> Iterator[None]:
    """Keeps the traceback of Horovod's Spark thread out of the run's output.

    The thread raises what it has already reported to its launcher, or that it was cancelled.
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
