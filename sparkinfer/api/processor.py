"""`torch_batch_process`: a processor class over a dataset, in ranks that commit together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle

from sparkinfer.batch_process.call import (
    ENGINES,
    check_dataset,
    check_loader,
    check_processor,
    make_plan,
    positive,
    settings_of,
)
from sparkinfer.batch_process.commits import folder_of, read_commits
from sparkinfer.batch_process.launchers import (
    HorovodLauncher,
    LocalLauncher,
    SparkTaskLauncher,
)
from sparkinfer.batch_process.processor import TorchBatchProcessor
from sparkinfer.batch_process.rank import BatchRankJob, Work
from sparkinfer.batch_process.rows import open_rows
from sparkinfer.batch_process.run import INPUT, START_TIMEOUT_S, BatchRun, OutputRun, read_run
from sparkinfer.disk_errors import disk_errors_reported
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, causes_without_secrets
from sparkinfer.jobs.lease import Lease
from sparkinfer.messages import first_line, shown
from sparkinfer.spark.java import NO_PYSPARK
from sparkinfer.storage import WORK_FOLDER, absolute, join

DEVICES = ("auto", "cpu", "cuda")

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from torch.utils.data import Dataset

    from sparkinfer.engines.horovod.launchers import Launcher


@causes_without_secrets()
def torch_batch_process(
    batch_processor_cls: type[TorchBatchProcessor],
    dataset: Dataset[Any] | DataFrame,
    batch_size: int | None = None,
    max_batches: int | None = None,
    checkpoint_interval: int = 5,
    dataloader_kwargs: Mapping[str, Any] | None = None,
    distributed_context: None = None,
    *,
    output: str,
    num_workers: int | None = None,
    engine: Literal["local", "spark", "horovod"] = "local",
    hparams: Mapping[str, Any] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    spark: SparkSession | None = None,
    mlflow_experiment: str | None = None,
) -> BatchRun:
    """Has ranks process the batches of a dataset, and returns what they have committed.

    Batch `i` is for rank `i mod num_workers`. Every `checkpoint_interval` steps the ranks commit
    together; the same call after an interruption resumes there, and processes no committed batch
    again. On SIGINT, SIGTERM or SIGHUP the ranks finish the step at hand and commit it.

    Args:
        batch_processor_cls: made in each rank as `cls(context=...)`.
        dataset: with `__len__` and `__getitem__`, or a DataFrame, whose batches are dicts of
            columns; it is copied once.
        batch_size: rows of a batch; None: that of `dataloader_kwargs`, else 1.
        max_batches: steps that each rank takes at most.
        checkpoint_interval: steps from one checkpoint to the next.
        dataloader_kwargs: further arguments of torch's `DataLoader`.
        distributed_context: nothing; ranks are started by this call.
        output: folder for what the ranks hand in; its work folder keeps the run.
        num_workers: ranks; None: one, on Spark as many as run together.
        engine: what runs the ranks: processes of this machine, Spark tasks or Horovod.
        hparams: what `context.get_hparams()` returns.
        device: of the ranks; `auto`: GPUs where there are any.
        spark: session; None: that of the DataFrame, or the active one.
        mlflow_experiment: name of an experiment in MLflow that gets the metrics as well.

    Raises:
        UsageError: the call cannot work, or is not that of the run which the output holds.
        PausedError: it was asked to end, and has committed what was done.
        JobError: a rank failed; the same call resumes from the last checkpoint.
    """
    check_processor(batch_processor_cls)
    interval = positive("checkpoint_interval", checkpoint_interval)
    loader, size, drop_last = check_loader(dataloader_kwargs, batch_size)
    if distributed_context is not None:
        raise ConfigError(
            f"distributed_context={shown(distributed_context)}: ranks are started by this call; "
            "leave it out and give num_workers"
        )
    session = _session(engine, spark, dataset)
    place = _place(engine, session, device, num_workers)
    path = _qualified(output, session)
    is_frame = _is_frame(dataset)
    plan = make_plan(_length(dataset), size, drop_last, place.ranks, interval, max_batches)
    kind = "a DataFrame" if is_frame else "a dataset"
    settings = settings_of(batch_processor_cls, plan, hparams or {}, kind)
    with disk_errors_reported(path), Lease(join(path, WORK_FOLDER, "lease")) as lease:
        run = OutputRun(path, lease)
        earlier = run.earlier(settings)
        staged = None
        if is_frame:
            staged = earlier["input"] if earlier else _copied(dataset, path)
            dataset = open_rows(folder_of(path, INPUT, staged))
            loader.setdefault("collate_fn", dataset.collate)
        work = _pickled(Work(batch_processor_cls, dataset, loader, hparams or {}))
        run.begin(earlier, settings, staged)
        job = BatchRankJob(work, plan, path, "", 0, (), place.device, place.cores)
        _process(run, job, place, mlflow_experiment)
    return read_run(path)


def read_batch_run(output: str) -> BatchRun:
    """Returns what the run of a batch processor has committed so far, its metrics among it.

    Args:
        output: as it was given to `torch_batch_process`.

    Raises:
        OutputError: there is no such run.
        ResumeError: one of its records is damaged.
    """
    return read_run(absolute(os.fspath(output)))


@dataclass(frozen=True)
class _Place:
    """What the ranks run on.

    Attributes:
        ranks: how many.
        device: see `BatchRankJob`.
        cores: of each.
        launcher: starts them.
    """

    ranks: int
    device: str
    cores: int
    launcher: Launcher


def _place(
    engine: str,
    spark: SparkSession | None,
    device: Literal["auto", "cpu", "cuda"],
    num_workers: Any,
) -> _Place:
    """Returns what the ranks run on.

    Raises:
        ConfigError: there is no such engine or device, or there are fewer slots than ranks.
        EngineUnavailableError: something that the engine needs is missing.
    """
    if num_workers is not None:
        positive("num_workers", num_workers)
    if device not in DEVICES:
        raise ConfigError(f"device={shown(device)}: expected one of {', '.join(DEVICES)}")
    if engine == "local" or spark is None:
        ranks = num_workers or 1
        return _Place(ranks, device, max(1, _count_cores() // ranks), LocalLauncher())
    from sparkinfer.spark.accelerators import count_accelerators

    launcher = _spark_launcher(engine, spark)
    found = count_accelerators(spark, device, num_workers, together=True)
    launcher.check(found.device_type)
    _refuse_waiting_ranks(spark, found.count)
    return _Place(found.count, found.device_type, found.cores_per_task, launcher)


def _spark_launcher(engine: str, spark: SparkSession) -> Launcher:
    from sparkinfer.spark.classic import is_classic

    if engine == "spark":
        return SparkTaskLauncher(spark)
    if not is_classic(spark):
        raise EngineUnavailableError(
            "engine='horovod' on Spark Connect: ranks are started through a SparkContext, which "
            "such a session lacks; use a classic session or engine='spark'"
        )
    return HorovodLauncher(spark, START_TIMEOUT_S)


def _refuse_waiting_ranks(spark: SparkSession, ranks: int) -> None:
    """Raises ConfigError if not all ranks run at the same time: they would wait for one another."""
    from sparkinfer.spark.slots import find_slots, is_dynamic

    slots = None if is_dynamic(spark) else find_slots(spark)
    if slots is not None and slots.is_certain and ranks > slots.count:
        raise ConfigError(
            f"num_workers={ranks}: the executors run {slots.count} tasks at a time, and all ranks "
            f"must run together; use num_workers={slots.count} or fewer, or add executors"
        )


def _session(engine: str, spark: SparkSession | None, dataset: Any) -> SparkSession | None:
    """Returns the session that the call needs, None if it needs none."""
    if engine not in ENGINES:
        raise ConfigError(f"engine={shown(engine)}: expected one of {', '.join(ENGINES)}")
    if spark is not None:
        return spark
    if _is_frame(dataset):
        session: SparkSession = dataset.sparkSession
        return session
    if engine == "local":
        return None
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise EngineUnavailableError(f"engine={engine!r}: {NO_PYSPARK}") from None
    active = SparkSession.getActiveSession()
    if active is None:
        raise ConfigError(
            f"engine={engine!r} without a session: give spark=..., or make one before the call"
        )
    return active


def _is_frame(dataset: Any) -> bool:
    return type(dataset).__module__.startswith("pyspark.sql") and hasattr(dataset, "sparkSession")


def _length(dataset: Any) -> int:
    if not _is_frame(dataset):
        return check_dataset(dataset)
    from sparkinfer.batch_process.frame import count_rows

    return count_rows(dataset)


def _copied(df: Any, output: str) -> str:
    from sparkinfer.batch_process.frame import copy_rows

    return copy_rows(df, output, INPUT)


def _qualified(output: Any, spark: SparkSession | None) -> str:
    """Returns the output as all processes understand it."""
    if not isinstance(output, str | os.PathLike) or not os.fspath(output):
        raise ConfigError(f"output={shown(output)}: expected a folder for the run")
    path = os.fspath(output)
    if spark is None or path.startswith("~"):
        return absolute(path)
    from sparkinfer.spark.session import qualify

    return absolute(qualify(spark, path))


def _pickled(work: Work) -> bytes:
    """Returns what the user gave, as bytes; classes of a script or a notebook by value.

    Raises:
        ConfigError: it cannot be pickled.
    """
    try:
        content: bytes = cloudpickle.dumps(work)
    except Exception as error:
        raise ConfigError(
            f"the processor class, the dataset, dataloader_kwargs or hparams cannot be sent to the "
            f"ranks ({type(error).__name__}: {first_line(error)}); open files and connections in "
            "the processor's __init__, or in the dataset when a row is first read"
        ) from error
    return content


def _process(run: OutputRun, job: BatchRankJob, place: _Place, experiment: str | None) -> None:
    if experiment is None:
        run.process(job, place.launcher, lambda _: None, place.device)
        return
    from sparkinfer.batch_process.mlflow_log import MlflowLog

    log = MlflowLog(experiment, run.output, run.id)
    log.add(read_commits(run.output))
    run.process(job, place.launcher, log.try_add, place.device)
    log.add(read_commits(run.output))
    log.finish()


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
