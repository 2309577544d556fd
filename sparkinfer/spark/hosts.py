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
    if not is_classic(spark):
        return 1
    sc = spark.sparkContext
    executors = sc._jsc.sc().statusStore().executorList(True)  # type: ignore[attr-defined, unused-ignore]
    found = [executors.apply(index).totalCores() for index in range(executors.size())]
    return math.ceil(replicas / max(1, sum(int(cores) > 0 for cores in found)))


def hosts_of(spark: SparkSession) -> tuple[str, dict[str, int]]:
    """Returns a name for the application, and its executors' cores by the name of their host.

    Under Spark Connect the hosts are not known: there are none.
    """
    if not is_classic(spark):
        return "sparkinfer", {}
    sc = spark.sparkContext
    name = re.sub(r"[^A-Za-z0-9-]", "_", str(sc.applicationId))
    executors = sc._jsc.sc().statusStore().executorList(True)  # type: ignore[attr-defined, unused-ignore]
    cores: dict[str, int] = {}
    for index in range(executors.size()):
        executor = executors.apply(index)
        if executor.totalCores():  # a cluster's driver has none
            host = str(executor.hostPort()).rsplit(":", 1)[0]
            cores[host] = cores.get(host, 0) + int(executor.totalCores())
    return name, cores
