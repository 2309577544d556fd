"""Calls a function with the name of each file in Spark tasks, one file per task."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from sparkinfer.exceptions import JobError, SparkInferError
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import in_job_thread

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = TypeVar("T")


def on_each_file(spark: SparkSession, act: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """Returns a function's result for each name; see `FileAccess.on_each`.

    Raises:
        SparkInferError: raised by the function, for the first of the names for which it was.
        JobError: a task failed.
    """

    def call(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                found: T | SparkInferError
                try:
                    found = act(names[index])
                except SparkInferError as error:  # not to be tried again, nor to lose its class
                    found = error
                yield pa.RecordBatch.from_pylist([{"index": index, "found": pickle.dumps(found)}])

    try:
        one_file_each = spark.range(len(names), numPartitions=max(1, len(names)))
        asked = one_file_each.mapInArrow(call, "index long, found binary")
        rows = in_job_thread(spark, asked.collect)
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"reading {len(names)} input files failed: {explain(error)}") from error
    # Pickled by our own workers, in this job.
    found = [pickle.loads(bytes(row.found)) for row in sorted(rows, key=lambda row: row["index"])]
    for result in found:
        if isinstance(result, SparkInferError):
            raise result
    return found
