"""Chunks scored by Spark tasks: read by Arrow, scored in the UDF, written by Spark."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql.types import StructField, StructType

from sparkinfer.engines.scoring_udf import with_scores
from sparkinfer.engines.spark_worker import WorkerJob, write_partition
from sparkinfer.exceptions import JobError
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkTask, ScoredChunk
from sparkinfer.rows.tally import WrittenFile, tally_file
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import in_pool
from sparkinfer.spark.tables import in_types, literal_path, spark_schema, with_plain_names
from sparkinfer.storage import join
from sparkinfer.workers.channel import ProgressAddress
from sparkinfer.workers.suspects import Attempt

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TALLY_POOL = "sparkinfer-tally"
"""Where Spark shares fairly, what is scored is counted before the chunks that wait for slots."""


@dataclass(frozen=True)
class WrittenChunk:
    """A chunk whose files Spark has committed.

    Attributes:
        task: the chunk.
        attempt: folder of the files, below the chunk's staging folder.
        seconds: from its start to its files being whole.
        files: what they hold, where that is known already.
    """

    task: ChunkTask
    attempt: str
    seconds: float
    files: tuple[WrittenFile, ...] | None = None


class SparkChunks:
    """Scores chunks of one plan; its methods run in threads of `JobThreads`.

    Args:
        spark: the session.
        plan: how rows are scored.
        progress: where workers report; None: nowhere.
        workers: returns those that there are at the moment.
    """

    def __init__(
        self,
        spark: SparkSession,
        plan: Plan,
        progress: ProgressAddress | None,
        workers: Callable[[], Workers],
    ) -> None:
        self._spark = spark
        self._plan = plan
        self._progress = progress
        self._workers = workers

    def score(self, task: ChunkTask, attempt: Attempt) -> WrittenChunk:
        """Returns a chunk once Spark has committed its files, which are not counted yet.

        Spark tries a task several times, except with `local[n]`, where it tries it once. A chunk
        over which a worker has died is one task, so that suspects run one at a time.

        Raises:
            JobError: a task failed for good; `is_death` tells whether its worker died.
        """
        started = time.monotonic()
        parts = 1 if attempt.has_predecessor else self.spread(task.chunk.rows)
        name = f"chunk {task.chunk.number} {attempt.launch}"
        job = WorkerJob(self._plan, self._progress, name, attempt)
        rows = self._read(task.chunk).repartition(parts)
        files: tuple[WrittenFile, ...] | None = None
        try:
            if self._plan.processor.replaces_rows:
                files = self._write_others(rows, job, join(task.staging, attempt.launch))
            else:
                with_scores(rows, job).write.parquet(join(task.staging, attempt.launch))
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(explain(error)) from error
        return WrittenChunk(task, attempt.launch, time.monotonic() - started, files)

    def _write_others(self, df: DataFrame, job: WorkerJob, folder: str) -> tuple[WrittenFile, ...]:
        """Has other rows made of a chunk's, and written by the tasks that make them.

        A UDF gives as many rows as it is given.
        """
        attempt, inputs = folder.rsplit("/", 1)[-1], self._plan.columns.inputs

        def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            rows = (in_types(batch, inputs) for batch in batches)
            for file in write_partition(job, rows, folder):
                named = WrittenFile(f"{attempt}/{file.name}", file.tally)
                yield pa.RecordBatch.from_arrays([pa.array([pickle.dumps(named)])], ["file"])

        found = with_plain_names(df).mapInArrow(write, "file binary").collect()
        # Pickled by our own workers, in this job.
        return tuple(pickle.loads(bytes(row.file)) for row in found)

    def count(self, written: WrittenChunk) -> ScoredChunk:
        """Returns a chunk with what its files hold.

        Raises:
            JobError: they could not be read.
        """
        task, files = written.task, written.files
        if files is None:
            files = tuple(self._tallied(task, written.attempt))
        return ScoredChunk(task.chunk, task.staging, files, written.seconds)

    def spread(self, rows: int) -> int:
        """Returns the number of Spark tasks in which this many rows are scored at the moment."""
        return self._workers().spread(rows)

    def _tallied(self, task: ChunkTask, attempt: str) -> list[WrittenFile]:
        """Returns what Spark has committed to an attempt's folder, counted by Spark tasks.

        Spark's own view of the folder is asked for the names: a listing also has what a committer
        of its own kind leaves there of dead attempts.
        """
        folder = join(task.staging, attempt)
        measure = self._plan.measure
        try:
            schema = spark_schema(self._plan.columns.output)
            committed = self._spark.read.schema(schema).parquet(literal_path(folder)).inputFiles()
            names = [f"{attempt}/{unquote(uri.rsplit('/', 1)[-1])}" for uri in committed]

            def tally(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    for index in batch.column(0).to_pylist():
                        name = names[index]
                        path = join(task.staging, name)
                        file = pickle.dumps(WrittenFile(name, tally_file(path, measure)))
                        yield pa.RecordBatch.from_arrays([pa.array([file])], ["file"])

            count = max(1, min(len(names), self._workers().count))
            with in_pool(self._spark, TALLY_POOL):
                rows = self._spark.range(len(names), numPartitions=count)
                files = rows.mapInArrow(tally, "file binary").collect()
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"what was written was not counted: {explain(error)}") from error
        # Pickled by our own workers, in this job.
        return [pickle.loads(bytes(row.file)) for row in files]

    def _read(self, chunk: Chunk) -> DataFrame:
        """Returns a chunk's rows; its pieces are read by as many tasks as there can be."""
        reader = self._plan.reader
        names = [f"c{index}" for index in range(len(reader.schema))]
        count = max(1, min(len(chunk.pieces), self._workers().count))
        shares = [chunk.pieces[index::count] for index in range(count)]

        def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for index in batch.column(0).to_pylist():
                    for rows in reader.read(shares[index]):
                        yield pa.RecordBatch.from_arrays(rows.columns, names=names)

        # By plain names: mapInArrow does not find a column whose name holds a backtick or a dot.
        kinds = [field.dataType for field in spark_schema(reader.schema)]
        schema = StructType([StructField(*pair) for pair in zip(names, kinds, strict=True)])
        df = self._spark.range(count, numPartitions=count).mapInArrow(read, schema)
        return df.toDF(*reader.schema.names)
