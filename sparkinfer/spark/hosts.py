"""The hosts of a Spark application, and the cores that it has there."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from sparkinfer.spark.classic import is_classic

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def replicas_on_host(spark: SparkSession, replicas: int) -> int:
    """Returns how many replicas share the memory of a host, about; 1 if nobody knows.

    An executor has its own container or host with most cluster managers.
    """
    executors = len(_executors(spark)) if is_classic(spark) else 0
    return math.ceil(replicas / executors) if executors else 1


def hosts_of(spark: SparkSession) -> tuple[str, dict[str, int]]:
    """Returns a name for the application, and its executors' cores by the name of their host.

    Under Spark Connect the hosts are not known: there are none.
    """
    if not is_classic(spark):
        return "sparkinfer", {}
    name = re.sub(r"[^A-Za-z0-9-]", "_", str(spark.sparkContext.applicationId))
    cores: dict[str, int] = {}
    for host, of_executor in _executors(spark):
        cores[host] = cores.get(host, 0) + of_executor
    return name, cores


def count_tasks(spark: SparkSession, cores: int) -> int:
    """Returns how many tasks of so many cores, and without GPUs, the executors run at a time.

    Under Spark Connect the executors are not known: 0.
    """
    if not is_classic(spark):
        return 0
    return sum(of_executor // cores for _, of_executor in _executors(spark))


def _executors(spark: SparkSession) -> list[tuple[str, int]]:
    """Returns each executor's host and cores, in a classic session; a cluster's driver has none."""
    store = spark.sparkContext._jsc.sc().statusStore()  # type: ignore[attr-defined, unused-ignore]
    listed = store.executorList(True)
    every = [listed.apply(index) for index in range(listed.size())]
    return [
        (str(one.hostPort()).rsplit(":", 1)[0], int(one.totalCores()))
        for one in every
        if one.totalCores()
    ]
