"""A DataFrame as the dataset of a run: copied once as Parquet, below the output."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

from sparkinfer.batch_process.commits import folder_of
from sparkinfer.exceptions import JobError
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import watched_job
from sparkinfer.spark.settings import PLAIN_TIMES, settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

GROUP_BYTES = 8 << 20
"""Size of a row group: a rank decodes one to read a batch in it."""


def copy_rows(df: DataFrame, output: str, folder: str) -> str:
    """Copies all rows to a new folder and returns its name; the order is then fixed.

    Args:
        df: the rows.
        output: the run's output.
        folder: of such copies, in the run's folder.

    Raises:
        JobError: Spark failed.
    """
    name = uuid.uuid4().hex
    path = folder_of(output, folder, name)
    writer = df.write.option("parquet.block.size", GROUP_BYTES)
    try:
        with settings(df.sparkSession, PLAIN_TIMES):
            watched_job(df.sparkSession, partial(writer.parquet, path), "the copy of the dataset")
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"copying the dataset to {path!r} failed: {explain(error)}") from error
    return name


def count_rows(df: DataFrame) -> int:
    """Returns the number of rows.

    Raises:
        JobError: Spark failed.
    """
    try:
        return watched_job(df.sparkSession, df.count, "the length of the dataset")
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"the dataset cannot be counted: {explain(error)}") from error
