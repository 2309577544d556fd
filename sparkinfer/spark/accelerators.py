"""How many model replicas a Spark application can run in parallel, and which device a task owns.

One replica belongs to one task slot. If Spark schedules GPUs (`spark.task.resource.gpu.amount`), a
slot owns a GPU and Spark says which; if not, the executors are probed for what they have, and tasks
on one host claim GPUs through lock files. A layout in which several replicas would be loaded on one
GPU is rejected on the driver. The driver itself never touches CUDA.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sparkinfer.exceptions import ConfigError, EngineUnavailableError, JobError, SparkInferError
from sparkinfer.logs import get_logger
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import watched_job
from sparkinfer.spark.settings import setting
from sparkinfer.spark.slots import DYNAMIC, Slots, find_slots, is_dynamic
from sparkinfer.workers.devices import (
    count_cuda_devices,
    has_nvidia_driver,
    worker_device,
    worker_gpus,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

GPUS_PER_TASK = "spark.task.resource.gpu.amount"
GPUS_PER_EXECUTOR = "spark.executor.resource.gpu.amount"
CORES_PER_TASK = "spark.task.cpus"

logger = get_logger(__name__)


@dataclass(frozen=True)
class Accelerators:
    """What the replicas run on.

    Attributes:
        device_type: of each replica.
        count: replicas that run in parallel, over all executors.
        cores_per_task: CPU cores that Spark gives to each of them.
        most: replicas that there may be once the cluster has grown.
    """

    device_type: Literal["cuda", "cpu"]
    count: int
    cores_per_task: int
    most: int


@dataclass(frozen=True)
class HostReport:
    """What the probing tasks saw on one host.

    Attributes:
        tasks: task slots of the application on the host.
        gpus: CUDA devices that torch sees there.
        has_driver: an NVIDIA driver is loaded there.
    """

    tasks: int
    gpus: int
    has_driver: bool


def count_accelerators(
    spark: SparkSession,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    num_workers: int | None = None,
    gpus_each: int = 1,
    *,
    together: bool = False,
) -> Accelerators:
    """Returns how many replicas run in parallel and on what; called on the driver.

    The slots are those of the registered executors, whose registration is awaited; on Spark Connect
    they are found out by a job. `device="auto"` uses GPUs if there are any. `num_workers` overrides
    the count; those beyond the CPU slots run after the others. Each replica takes `gpus_each` GPUs.

    Args:
        spark: the session.
        device: what the replicas are to run on.
        num_workers: how many; None: one for each slot.
        gpus_each: GPUs of a replica.
        together: whether all must run at the same time.

    Raises:
        ConfigError: several replicas would share one GPU, `num_workers` exceeds the GPUs, or it is
            needed but not given: not all of a growing cluster's run at the same time.
        EngineUnavailableError: `device="cuda"` and there is no GPU, or no executor registers.
    """
    gpus_per_task = setting(spark, GPUS_PER_TASK)
    refuse_gpu_tasks_in_local_mode(setting(spark, "spark.master"), gpus_per_task)
    spark_assigns_gpus = device != "cpu" and owns_whole_gpus(gpus_per_task, gpus_each)
    slots = _slots_of(spark, num_workers, together)
    cores = cores_per_task(spark)
    if device == "cpu":
        return _on_slots("cpu", slots, num_workers, cores)
    if not spark_assigns_gpus:
        hosts = probe_hosts(spark, slots.count if slots else num_workers or 1, device)
        if slots is not None and slots.of_hosts:
            hosts = with_slots(hosts, slots.of_hosts)
        known = slots is not None and slots.is_certain
        kind = choose_kind(hosts, device, num_workers, slots_known=known, gpus_each=gpus_each)
        if kind == "cpu":
            return _on_slots("cpu", slots, num_workers, cores)
    if slots is not None and slots.is_certain:
        refuse_more_than_gpus(slots.count, num_workers)
    return _on_slots("cuda", slots, num_workers, cores)


def _slots_of(spark: SparkSession, num_workers: int | None, together: bool) -> Slots | None:
    """Returns the slots, None if a number is given and they are not known without asking."""
    if is_dynamic(spark) and together and num_workers is None:
        raise ConfigError(
            f"{DYNAMIC}=true leaves the number of executors open, and all workers must run "
            "together; give num_workers, their number"
        )
    if num_workers is not None and (is_dynamic(spark) or not is_classic(spark)):
        return None
    return find_slots(spark)


def _on_slots(
    kind: Literal["cuda", "cpu"], slots: Slots | None, num_workers: int | None, cores: int
) -> Accelerators:
    if num_workers is not None or slots is None:
        count = most = num_workers or 1
    else:
        count, most = slots.count, slots.most
    return Accelerators(kind, count, cores, most)


def task_device(kind: str) -> AbstractContextManager[str]:
    """Returns a context of the torch device that the running task owns: `cpu` or `cuda:<index>`.

    Called in the Python worker of a task, and open as long as the task. The process keeps a GPU for
    later tasks, whichever GPU Spark names then.

    Args:
        kind: `cuda` or `cpu`, as in `Accelerators.device_type`.

    Raises:
        EngineUnavailableError: the GPU is not visible to torch, or all of them are taken; there is
            no fallback from a requested GPU to the CPU.
    """
    return worker_device(kind, None if kind == "cpu" else assigned_gpu(), 0)


def cores_per_task(spark: SparkSession) -> int:
    """Returns the CPU cores that Spark gives to each task."""
    return int(setting(spark, CORES_PER_TASK) or 1)


@contextmanager
def task_devices(kind: str, gpus_each: int) -> Iterator[tuple[str, ...]]:
    """Yields the torch devices of the running task, of which there are several for a split model.

    Args:
        kind: see `task_device`.
        gpus_each: GPUs of a replica.

    Raises:
        EngineUnavailableError: see `task_device`.
    """
    if kind == "cpu" or gpus_each == 1:
        with task_device(kind) as device:
            yield (device,)
    else:
        with worker_gpus(assigned_gpus(), gpus_each) as devices:
            yield devices


def refuse_gpu_tasks_in_local_mode(master: str | None, gpus_per_task: str | None) -> None:
    """Raises ConfigError if no task would ever start: local mode does not schedule GPUs."""
    if _is_local(master) and float(gpus_per_task or 0) > 0:
        raise ConfigError(
            f"{GPUS_PER_TASK}={gpus_per_task} with master {master!r}: Spark's local mode assigns "
            "no GPUs, so its tasks would wait forever; leave the setting out there"
        )


def _is_local(master: str | None) -> bool:
    return re.fullmatch(r"local(\[.*\])?", master or "") is not None


def owns_whole_gpus(gpus_per_task: str | None, gpus_each: int = 1) -> bool:
    """Returns whether Spark gives each task its own GPUs.

    Raises:
        ConfigError: it gives a task a fraction of a GPU, or fewer than a replica takes.
    """
    amount = float(gpus_per_task or 0)
    if 0 < amount < 1:
        raise ConfigError(
            f"{GPUS_PER_TASK}={gpus_per_task}: {int(1 / amount)} tasks, each with its own copy of "
            "the model, would share one GPU; set it to 1"
        )
    if 1 <= amount < gpus_each:
        raise ConfigError(
            f"{GPUS_PER_TASK}={gpus_per_task} with parallel.tensor={gpus_each}: each replica takes "
            f"{gpus_each} GPUs; set it to {gpus_each}"
        )
    return amount >= 1


def probe_hosts(spark: SparkSession, tasks: int, device: str) -> dict[str, HostReport]:
    """Returns what each executor host has, by running a job with as many tasks as slots.

    Raises:
        EngineUnavailableError: the workers' Python cannot be used.
        JobError: the job failed.
    """
    here = is_classic(spark) and _is_local(setting(spark, "spark.master"))
    if device == "auto" and here and not has_nvidia_driver():
        return {socket.gethostname(): HostReport(tasks, 0, has_driver=False)}
    # Importing torch takes seconds, not worth it on a host without a driver.
    always_ask_torch = device == "cuda"

    def report(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _report_gpus(batches, always_ask_torch)

    schema = "host string, gpus int, has_driver boolean"
    asked = spark.range(0, tasks, 1, tasks).mapInArrow(report, schema)
    try:
        rows = watched_job(spark, asked.collect, "executors that tell what GPUs they have")
    except SparkInferError:
        raise
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"what GPUs the executors have is not known: {explain(error)}") from error
    return merge_reports((row["host"], row["gpus"], row["has_driver"]) for row in rows)


def merge_reports(reports: Iterable[tuple[str, int, bool]]) -> dict[str, HostReport]:
    """Merges the reports of tasks, (host, gpus, has_driver), into one per host."""
    hosts: dict[str, HostReport] = {}
    for host, gpus, has_driver in reports:
        tasks = hosts[host].tasks if host in hosts else 0
        hosts[host] = HostReport(tasks + 1, gpus, has_driver)
    return hosts


def with_slots(hosts: Mapping[str, HostReport], slots: Mapping[str, int]) -> dict[str, HostReport]:
    """Returns the reports with each host's own number of slots, as far as it is known.

    Tasks may have run one after another, and on fewer hosts than there are.
    """
    return {
        host: replace(report, tasks=slots.get(host, report.tasks)) for host, report in hosts.items()
    }


def choose_kind(
    hosts: Mapping[str, HostReport],
    device: str,
    num_workers: int | None,
    *,
    slots_known: bool,
    gpus_each: int = 1,
) -> Literal["cuda", "cpu"]:
    """Returns what the replicas run on if Spark does not schedule GPUs.

    Args:
        hosts: what each host has.
        device: `auto` or `cuda`.
        num_workers: replicas that were requested.
        slots_known: whether `tasks` of a report are slots; if not, they may include tasks that ran
            one after another, and it is left to the locks to reject a second replica on a GPU.
        gpus_each: GPUs of a replica.

    Raises:
        EngineUnavailableError: `device="cuda"` and no host has a GPU.
        ConfigError: a host has more slots than GPUs.
    """
    if not any(report.gpus for report in hosts.values()):
        if device == "cuda":
            raise EngineUnavailableError(_no_gpu(hosts, num_workers or 1))
        _warn_of_unused_gpus(hosts)
        return "cpu"
    for host, report in sorted(hosts.items()):
        if slots_known and report.tasks * gpus_each > report.gpus:
            split = f", {gpus_each} of which a copy takes" if gpus_each > 1 else ""
            raise ConfigError(
                f"host {host} runs {report.tasks} tasks at a time but has {report.gpus} GPU(s)"
                f"{split}: several copies of the model would be loaded on one GPU; set "
                f"{GPUS_PER_EXECUTOR} and {GPUS_PER_TASK}={gpus_each}, or on one machine --master "
                f"'local[{max(report.gpus // gpus_each, 1)}]', or use device='cpu'"
            )
    return "cuda"


def _no_gpu(hosts: Mapping[str, HostReport], wanted: int) -> str:
    names = ", ".join(sorted(hosts)[:8])
    return (
        f"device='cuda': {wanted} GPU(s) were requested, none was found on {len(hosts)} executor "
        f"host(s) ({names}); use device='cpu' (--device cpu), or a cluster whose workers have GPUs "
        f"and a CUDA build of torch, with {GPUS_PER_EXECUTOR} and {GPUS_PER_TASK} set"
    )


def _warn_of_unused_gpus(hosts: Mapping[str, HostReport]) -> None:
    names = sorted(host for host, report in hosts.items() if report.has_driver)
    if names:
        logger.warning(
            "%s: there is an NVIDIA driver, but torch sees no CUDA device; the model runs on the "
            "CPU. A CUDA build of torch and a visible GPU would be used; device='cpu' silences "
            "this.",
            ", ".join(names[:8]),
        )


def refuse_more_than_gpus(slots: int, num_workers: int | None) -> None:
    """Raises ConfigError if more replicas are requested than there are slots with a GPU."""
    if num_workers is not None and num_workers > slots:
        raise ConfigError(
            f"num_workers={num_workers}: the executors run {slots} tasks with a GPU at a time; use "
            f"num_workers={slots} or fewer, or add GPUs"
        )


def _report_gpus(
    batches: Iterable[pa.RecordBatch], always_ask_torch: bool
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for _ in batches:
        has_driver = has_nvidia_driver()
        gpus = count_cuda_devices() if has_driver or always_ask_torch else 0
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([socket.gethostname()], pa.string()),
                pa.array([gpus], pa.int32()),
                pa.array([has_driver], pa.bool_()),
            ],
            names=["host", "gpus", "has_driver"],
        )


def assigned_gpu() -> str | None:
    """Returns the first GPU address that Spark gave the running task, or None."""
    return next(iter(assigned_gpus()), None)


def assigned_gpus() -> tuple[str, ...]:
    """Returns the GPU addresses that Spark gave the running task."""
    from pyspark import TaskContext

    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context is not None else None
    return () if gpu is None else tuple(map(str, gpu.addresses))
