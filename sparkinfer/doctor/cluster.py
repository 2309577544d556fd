"""Checks of Spark and of what its executors have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparkinfer.api.functions import qualified
from sparkinfer.doctor.case import Case
from sparkinfer.doctor.findings import Outcome, judge
from sparkinfer.doctor.nodes import (
    EXTRAS,
    PACKAGES,
    STUCK_BUILD_S,
    ask_executors,
    decode,
    node_problems,
    node_reporter,
)
from sparkinfer.spark.accelerators import (
    CORES_PER_TASK,
    GPUS_PER_EXECUTOR,
    GPUS_PER_TASK,
    HostReport,
    choose_kind,
    owns_whole_gpus,
    probe_hosts,
    refuse_gpu_tasks_in_local_mode,
)
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.remote import active_session, address_of, remote_address
from sparkinfer.spark.settings import setting
from sparkinfer.spark.slots import find_slots

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def check_java(case: Case) -> Outcome:
    """Checks for a Java that Spark runs on."""
    from sparkinfer.spark.java import ensure_java, pyspark_version

    version = pyspark_version()
    if "PYSPARK_GATEWAY_PORT" in os.environ or active_session():
        return Outcome("ok", "Spark is already running")
    if remote_address(case.config.master) is not None:
        return Outcome("ok", "none is needed here: the server of Spark Connect has its own")
    return Outcome("ok", f"{ensure_java()}, which pyspark {version} supports")


def check_spark(case: Case) -> Outcome:
    """Checks for a session of pyspark's version; keeps the session."""
    import pyspark

    from sparkinfer.spark.session import start_session

    case.spark = start_session(case.config)
    case.config = qualified(case.config, case.spark)
    found = f"Spark {case.spark.version} on {_master(case.spark)}"
    here, there = (text.split(".")[:2] for text in (pyspark.__version__, case.spark.version))
    if here == there:
        return Outcome("ok", found)
    return Outcome(
        "warning",
        f"{found}, but pyspark {pyspark.__version__} here",
        "install pyspark in the cluster's version",
    )


def check_settings(case: Case) -> Outcome:
    """Checks whether Spark's settings suit a run."""
    names = {
        *(GPUS_PER_TASK, GPUS_PER_EXECUTOR, CORES_PER_TASK, "spark.executor.cores"),
        *("spark.python.worker.reuse", "spark.python.worker.idleTimeoutSeconds"),
        "spark.sql.execution.arrow.maxRecordsPerBatch",
    }
    read = {name: setting(case.spark, name) for name in names}
    settings = {name: value for name, value in read.items() if value is not None}
    # In local mode such tasks would wait forever: check this before any job.
    refuse_gpu_tasks_in_local_mode(_master(case.spark), settings.get(GPUS_PER_TASK))
    owns_whole_gpus(settings.get(GPUS_PER_TASK))
    found = f"{settings.get(CORES_PER_TASK, '1')} core(s) and "
    found += f"{settings.get(GPUS_PER_TASK, 'no')} GPU(s) per task"
    return judge(found, settings_problems(settings))


def settings_problems(settings: Mapping[str, str]) -> list[Outcome]:
    """Returns settings of Spark that make a run slow or leave accelerators idle.

    Args:
        settings: values by name, for those that are set.
    """
    problems = []
    if settings.get("spark.python.worker.reuse") == "false":
        problems.append(
            Outcome(
                "warning",
                "spark.python.worker.reuse=false: the model is loaded again for each task",
                "set it to true",
            )
        )
    idle = settings.get("spark.python.worker.idleTimeoutSeconds", "0").rstrip("s")
    if idle != "0":
        problems.append(
            Outcome(
                "warning",
                f"spark.python.worker.idleTimeoutSeconds={idle}: a Python worker is killed while "
                "it waits for rows",
                "leave it at 0",
            )
        )
    if int(settings.get("spark.sql.execution.arrow.maxRecordsPerBatch", "2048")) <= 0:
        problems.append(
            Outcome(
                "warning",
                "spark.sql.execution.arrow.maxRecordsPerBatch has no limit: a worker holds a whole "
                "partition",
                "set it to 2048",
            )
        )
    return problems + _gpu_settings_problems(settings)


def _gpu_settings_problems(settings: Mapping[str, str]) -> list[Outcome]:
    per_executor = float(settings.get(GPUS_PER_EXECUTOR, "0"))
    per_task = float(settings.get(GPUS_PER_TASK, "0"))
    if per_executor and not per_task:
        return [
            Outcome(
                "warning",
                f"{GPUS_PER_EXECUTOR}={per_executor:g} and no {GPUS_PER_TASK}: executors have GPUs "
                "that Spark assigns to no task",
                f"set {GPUS_PER_TASK}=1",
            )
        ]
    problems = []
    if per_task > 1:
        problems.append(
            Outcome(
                "warning",
                f"{GPUS_PER_TASK}={per_task:g}: each task loads one model, on one of its GPUs",
                f"set {GPUS_PER_TASK}=1",
            )
        )
    cores = int(settings.get("spark.executor.cores", "0"))
    cores_per_task = int(settings.get(CORES_PER_TASK, "1"))
    if per_task and cores and cores // cores_per_task < per_executor // per_task:
        problems.append(
            Outcome(
                "warning",
                f"{cores} cores of an executor at {cores_per_task} per task do not keep its "
                f"{per_executor:g} GPUs busy",
                f"lower {CORES_PER_TASK} or raise spark.executor.cores",
            )
        )
    return problems


def check_executors(case: Case) -> Outcome:
    """Checks whether executors have what the driver has; keeps slots and nodes."""
    spark = case.spark
    now = find_slots(spark)
    if now.is_certain:
        case.slots = now.count
    report = node_reporter((*PACKAGES, *EXTRAS), STUCK_BUILD_S)
    case.nodes = [decode(text) for text in ask_executors(spark, case.tasks, report)]
    hosts = sorted({node.host for node in case.nodes})
    slots = "unknown" if case.slots is None else str(case.slots)
    found = f"{slots} task slots on {', '.join(hosts[:8])}; Python and packages as on the driver"
    return judge(found, node_problems(decode(report()), case.nodes))


def check_gpus(case: Case) -> Outcome:
    """Checks whether the hosts' GPUs can be used and would be."""
    device = case.config.device
    is_assigned = owns_whole_gpus(setting(case.spark, GPUS_PER_TASK))
    # If a GPU is required, torch is asked even on a host without a driver.
    asked = "cuda" if device == "cuda" or is_assigned else "auto"
    hosts = probe_hosts(case.spark, case.tasks, asked)
    if device != "cpu" and not is_assigned:
        choose_kind(
            hosts,
            device,
            case.config.num_workers,
            slots_known=case.slots is not None,
            gpus_each=case.config.parallel.tensor,
        )
    gpus = sum(report.gpus for report in hosts.values())
    found = f"{gpus or 'no'} GPU(s) on {len(hosts)} host(s)"
    return judge(found, gpu_problems(hosts, device, is_assigned=is_assigned))


def gpu_problems(
    hosts: Mapping[str, HostReport], device: str, *, is_assigned: bool
) -> list[Outcome]:
    """Returns which GPUs cannot be used, and which would be idle.

    Args:
        hosts: what torch sees on each host.
        device: the configured device.
        is_assigned: whether Spark assigns each task a GPU.
    """
    problems = []
    for host, report in sorted(hosts.items()):
        if is_assigned and device != "cpu" and not report.gpus:
            what = f"{host}: Spark assigns GPUs to tasks there, but torch sees none"
            advice = "install a CUDA build of torch and a working driver, or use --device cpu"
            problems.append(Outcome("error", what, advice))
        elif report.has_driver and not report.gpus:
            what = f"{host}: there is an NVIDIA driver, but torch sees no GPU"
            advice = "install a CUDA build of torch, or use --device cpu to leave the GPU alone"
            if device != "cpu":
                problems.append(Outcome("warning", what, advice))
        elif report.gpus and device == "cpu":
            what = f"{host}: device='cpu' leaves {report.gpus} GPU(s) idle"
            problems.append(Outcome("warning", what, "use --device auto"))
        elif report.gpus > report.tasks:
            what = f"{host}: {report.gpus} GPUs, but only {report.tasks} task(s) at a time"
            advice = f"set {GPUS_PER_EXECUTOR} and {GPUS_PER_TASK}=1, and cores for as many tasks"
            problems.append(Outcome("warning", what, advice))
    return problems


def _master(spark: SparkSession) -> str | None:
    return setting(spark, "spark.master") if is_classic(spark) else address_of(spark)
