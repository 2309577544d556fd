"""Copies files with Spark tasks, one file per task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from sparkinfer.exceptions import JobError
from sparkinfer.rows.copying import FileCopier
from sparkinfer.spark.errors import explain

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def copy_by_tasks(
    spark: SparkSession, copier: FileCopier, names: Sequence[str]
) -> dict[str, list[str]]:
    """Returns the names of the copies of each file; see `FileCopier`.

    Raises:
        JobError: a file cannot be read or its copy not written.
    """

    def copy(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                copies = copier.copy(names[index])
                yield pa.RecordBatch.from_pylist([{"index": index, "copies": copies}])

    try:
        one_file_each = spark.range(len(names), numPartitions=max(1, len(names)))
        rows = one_file_each.mapInArrow(copy, "index long, copies array<string>").collect()
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(
            f"copying {len(names)} files to {copier.folder!r} failed: {explain(error)}"
        ) from error
    return {names[row["index"]]: list(row.copies) for row in rows}
