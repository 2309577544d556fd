"""Changes settings of a session for as long as something of ours runs in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PLAIN_TIMES = {
    # The default is INT96, which other readers take for nanoseconds: from 1677 to 2262.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # The default of Spark 3 refuses days before 1582; this one writes them as they are.
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
}
"""Times and days are written as they are, in microseconds and days since 1970."""


@contextmanager
def settings(spark: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """Sets some settings and, at the end, sets or unsets them as they were."""
    before = {name: spark.conf.get(name, None) for name in values}
    for name, value in values.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, earlier)
