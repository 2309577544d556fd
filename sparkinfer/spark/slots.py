"""How many tasks of a Spark application run at the same time, and how many there may come to be.

A classic session knows its executors. On Spark Connect nothing tells of them, so that tasks are
looked at which run at the same time: see `sparkinfer.spark.slot_probe`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.settings import setting
from sparkinfer.spark.slot_probe import probe_slots

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

EXECUTORS = "spark.executor.instances"
DYNAMIC = "spark.dynamicAllocation.enabled"
MOST_EXECUTORS = "spark.dynamicAllocation.maxExecutors"
PARTITIONS = "spark.sql.shuffle.partitions"

EXECUTOR_TIMEOUT_S = 60.0
SETTLE_S = 1.0
POLL_S = 0.1

UNTOLD_SLOTS = 8
"""Taken for a cluster that tells nothing. With fewer slots, tasks wait for one another, which costs
little; with more, the tasks of the chunks in flight make use of three times as many."""

SPARKS_PARTITIONS = 200
"""Spark's default of `PARTITIONS`, where that is not a number: `auto`."""


@dataclass(frozen=True)
class Slots:
    """Tasks of an application that can run at the same time.

    Attributes:
        count: at this moment, at least 1.
        most: how many there may be once the cluster has grown as far as it may; never fewer.
        of_hosts: the same moment's by host; empty if that is not known.
        is_certain: whether `count` is what there is, rather than taken for want of knowledge.
    """

    count: int
    most: int
    of_hosts: dict[str, int]
    is_certain: bool = True


def find_slots(spark: SparkSession) -> Slots:
    """Returns the slots of an application.

    Executors that were asked for are waited for, unless they come and go with the tasks. On Spark
    Connect it takes a job of a few seconds, once in a while.

    Raises:
        EngineUnavailableError: no executor registers in time, or the workers' Python cannot be
            used.
    """
    if not is_classic(spark):
        found = probe_slots(spark)
        count = sum(found.values()) or UNTOLD_SLOTS
        is_certain = bool(found)
    elif is_dynamic(spark):
        count, found, is_certain = max(1, _slots_now(spark.sparkContext)[1]), {}, True
    else:
        count, found, is_certain = count_slots(spark.sparkContext), {}, True
    if is_dynamic(spark):
        return Slots(count, _most(spark, count), found, is_certain=False)
    return Slots(count, count, found, is_certain)


def slots_now(spark: SparkSession) -> int | None:
    """Returns how many tasks can run at this moment, None where that takes time to find out."""
    return _slots_now(spark.sparkContext)[1] if is_classic(spark) else None


def is_dynamic(spark: SparkSession) -> bool:
    """Returns whether Spark asks for executors as tasks wait, and releases idle ones."""
    return setting(spark, DYNAMIC) == "true"


def _most(spark: SparkSession, count: int) -> int:
    """Returns how many slots there may be, by the most executors or by Spark's own partitions."""
    executors = setting(spark, MOST_EXECUTORS)
    if executors is not None and executors.isdigit():
        return max(count, int(executors) * _slots_of_executor(spark))
    partitions = setting(spark, PARTITIONS) or ""
    return max(count, int(partitions) if partitions.isdigit() else SPARKS_PARTITIONS)


def _slots_of_executor(spark: SparkSession) -> int:
    """Returns the tasks that an executor runs at a time, by what is set; 1 if its cores are not."""
    cores = int(setting(spark, "spark.executor.cores") or 1)
    slots = cores // int(setting(spark, "spark.task.cpus") or 1)
    gpus_of_task = float(setting(spark, "spark.task.resource.gpu.amount") or 0)
    if gpus_of_task:
        gpus = float(setting(spark, "spark.executor.resource.gpu.amount") or 0)
        slots = min(slots, int(gpus / gpus_of_task))
    return max(1, slots)


def count_slots(sc: SparkContext) -> int:
    """Returns how many tasks run in parallel on the registered executors.

    Raises:
        EngineUnavailableError: none registers in time.
    """
    if sc._jsc.sc().isLocal():
        return _slots_now(sc)[1]
    expected = int(sc.getConf().get(EXECUTORS, "0") or 0)
    slots = wait_for_slots(lambda: _slots_now(sc), expected)
    if slots == 0:
        raise EngineUnavailableError(
            f"master {sc.master!r}: no executor that can run a task registered within "
            f"{EXECUTOR_TIMEOUT_S:.0f} s; free cores, memory or GPUs of the cluster, or request "
            "fewer per executor"
        )
    return slots


def _slots_now(sc: SparkContext) -> tuple[int, int]:
    """Returns the numbers of registered executors and of their slots."""
    context = sc._jsc.sc()
    profile = context.resourceProfileManager().defaultResourceProfile()
    executors = len(context.statusTracker().getExecutorInfos()) - 1  # one is the driver
    return executors, int(context.maxNumConcurrentTasks(profile))


def wait_for_slots(
    read: Callable[[], tuple[int, int]],
    expected_executors: int,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Returns the slots once they no longer change and the expected executors have registered.

    Args:
        read: returns the numbers of registered executors and of their slots.
        expected_executors: how many were requested, 0 if unknown; after the timeout, the slots of
            fewer are returned.
        clock: returns monotonic seconds.
        sleep: waits for a number of seconds.
    """
    start = last_change = clock()
    slots = 0
    while clock() - start < EXECUTOR_TIMEOUT_S:
        executors, current = read()
        if current != slots:
            slots, last_change = current, clock()
        if slots and executors >= expected_executors and clock() - last_change >= SETTLE_S:
            break
        sleep(POLL_S)
    return slots
