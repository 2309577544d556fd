"""Reads settings of a session, and changes them for as long as something of ours runs in it.

A serverless session lets neither be done with most of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparkinfer.logs import get_logger
from sparkinfer.spark.classic import is_classic

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = get_logger(__name__)

PLAIN_TIMES = {
    # The default is INT96, which other readers take for nanoseconds: from 1677 to 2262.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # The default of Spark 3 refuses days before 1582; this one writes them as they are.
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
}
"""Times and days are written as they are, in microseconds and days since 1970."""


def setting(spark: SparkSession, name: str) -> str | None:
    """Returns the value of a setting, None if it has none or the session does not show it."""
    try:
        return spark.conf.get(name, None)
    except Exception:  # Spark Connect's errors have no common root
        if is_classic(spark):
            raise
        return None


@contextmanager
def settings(spark: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """Sets some settings and, at the end, sets or unsets them as they were.

    Those that a session of Spark Connect does not let be set stay as they are.
    """
    before = {name: setting(spark, name) for name in values}
    changed = [name for name, value in values.items() if _try_to_set(spark, name, value)]
    try:
        yield
    finally:
        _restore(spark, {name: before[name] for name in changed})


def _restore(spark: SparkSession, values: Mapping[str, str | None]) -> None:
    try:
        for name, earlier in values.items():
            if earlier is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, earlier)
    except Exception:  # Spark Connect's errors have no common root
        if is_classic(spark):
            raise
        logger.debug("a session whose server is gone has no settings to restore", exc_info=True)


def _try_to_set(spark: SparkSession, name: str, value: str) -> bool:
    try:
        spark.conf.set(name, value)
    except Exception:  # Spark Connect's errors have no common root
        if is_classic(spark):
            raise
        return False
    return True
