"""Which kind of session there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def is_classic(spark: SparkSession) -> bool:
    """Returns whether the session has a SparkContext, which Spark Connect lacks."""
    try:
        return spark.sparkContext is not None
    except (AttributeError, NotImplementedError):  # the former since Spark 4
        return False
