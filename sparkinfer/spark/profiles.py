"""Resource profiles: what the tasks of one part of a job need, for Spark's scheduler."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.settings import setting

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def profile_of(spark: SparkSession, cores: int, gpus: float) -> Any:
    """Returns a profile for tasks with so many cores and GPUs; None where there can be none.

    A DataFrame takes one since Spark 4, and no local master schedules by one.
    """
    from pyspark.sql import DataFrame

    takes_profile = "profile" in inspect.signature(DataFrame.mapInArrow).parameters
    master = setting(spark, "spark.master") or ""
    if not takes_profile or not is_classic(spark) or re.match(r"local\b", master):
        return None
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    requests = TaskResourceRequests().cpus(cores)
    if gpus:
        requests = requests.resource("gpu", gpus)
    return ResourceProfileBuilder().require(requests).build
