"""Chunks scored by Spark tasks: read by Arrow, scored in the UDF, written by Spark."""

from __future__ import annotations

import math
import pickle
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql.types import StructField, StructType

from sparkinfer.engines.isolation import Isolation
from sparkinfer.engines.scoring_udf import with_error, with_scores
from sparkinfer.engines.spark_worker import WorkerJob
from sparkinfer.exceptions import JobError
from sparkinfer.logs import get_logger
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan
from sparkinfer.plan.ports import ChunkTask, ScoredChunk
from sparkinfer.rows.reading import cut_rows
from sparkinfer.rows.tally import WrittenFile, tally_file
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import in_pool
from sparkinfer.spark.tables import literal_path, spark_schema
from sparkinfer.storage import join
from sparkinfer.workers.channel import ProgressAddress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = get_logger(__name__)

LEAST_ROWS = {"cpu": 128, "cuda": 4096}
"""Worth a task of their own: its start and first window cost as much as about a second of rows."""


TALLY_POOL = "sparkinfer-tally"
"""Where Spark shares fairly, what is scored is counted before the chunks that wait for slots."""


@dataclass(frozen=True)
class WrittenChunk:
    """A chunk whose files Spark has committed.

    Attributes:
        task: the chunk.
        attempt: folder of the files, below the chunk's staging folder.
        seconds: from its start to its files being whole.
    """

    task: ChunkTask
    attempt: str
    seconds: float


class SparkChunks:
    """Scores chunks of one plan; its methods run in threads of `JobThreads`.

    Args:
        spark: the session.
        plan: how rows are scored.
        progress: where workers report; None: nowhere.
    """

    def __init__(self, spark: SparkSession, plan: Plan, progress: ProgressAddress | None) -> None:
        self._spark = spark
        self._plan = plan
        self._progress = progress

    def score(self, task: ChunkTask, attempt: str) -> WrittenChunk:
        """Returns a chunk once Spark has committed its files, which are not counted yet.

        Spark tries a task several times, except with `local[n]`, where it tries it once.

        Raises:
            JobError: a task failed for good; `deaths_in` tells whether its worker died.
        """
        started = time.monotonic()
        rows = self._read(task.chunk, None)
        self._write(self._scored(task, attempt, rows, task.chunk.rows), task, attempt)
        return WrittenChunk(task, attempt, time.monotonic() - started)

    def count(self, written: WrittenChunk) -> ScoredChunk:
        """Returns a chunk with what its files hold.

        Raises:
            JobError: they could not be read.
        """
        task = written.task
        files = self._tallied(task, written.attempt)
        return ScoredChunk(task.chunk, task.staging, tuple(files), written.seconds)

    def isolate(self, task: ChunkTask) -> ScoredChunk:
        """Returns a chunk over which workers die, with an error in the rows that kill them.

        It is scored in parts, down to single rows.
        """
        started = time.monotonic()
        files: list[WrittenFile] = []

        def score(first: int, rows: int) -> None:
            df = self._read(task.chunk, (first, rows))
            attempt = f"rows-{first}-{rows}-{uuid.uuid4().hex}"
            self._write(self._scored(task, attempt, df, rows), task, attempt)
            files.extend(self._tallied(task, attempt))

        def give_up(row: int, reason: str) -> None:
            logger.warning("chunk %d: row %d kills its worker", task.chunk.number, row)
            error = f"worker: its process died over this row ({reason})"
            unscored = with_error(self._read(task.chunk, (row, 1)), self._plan, error)
            self._write(unscored, task, f"row-{row}")
            files.extend(self._tallied(task, f"row-{row}"))

        Isolation(score, give_up).run(0, task.chunk.rows)
        return ScoredChunk(task.chunk, task.staging, tuple(files), time.monotonic() - started)

    def spread(self, rows: int) -> int:
        """Returns the number of Spark tasks in which this many rows are scored."""
        workers = self._plan.workers
        return max(1, min(workers.count, math.ceil(rows / LEAST_ROWS[workers.device_type])))

    def _scored(self, task: ChunkTask, attempt: str, df: DataFrame, rows: int) -> DataFrame:
        job = WorkerJob(self._plan, self._progress, f"chunk {task.chunk.number} {attempt}")
        return with_scores(df.repartition(self.spread(rows)), job)

    def _write(self, df: DataFrame, task: ChunkTask, attempt: str) -> None:
        try:
            df.write.parquet(join(task.staging, attempt))
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(explain(error)) from error

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

            count = max(1, min(len(names), self._plan.workers.count))
            with in_pool(self._spark, TALLY_POOL):
                rows = self._spark.range(len(names), numPartitions=count)
                files = rows.mapInArrow(tally, "file binary").collect()
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"what was written was not counted: {explain(error)}") from error
        # Pickled by our own workers, in this job.
        return [pickle.loads(bytes(row.file)) for row in files]

    def _read(self, chunk: Chunk, part: tuple[int, int] | None) -> DataFrame:
        """Returns a chunk's rows, or a part of them (first row, number of rows).

        The chunk's pieces are read by as many tasks as there can be, a part by one.
        """
        reader = self._plan.reader
        names = [f"c{index}" for index in range(len(reader.schema))]
        count = 1 if part else max(1, min(len(chunk.pieces), self._plan.workers.count))
        shares = [chunk.pieces[index::count] for index in range(count)]

        def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for index in batch.column(0).to_pylist():
                    for rows in cut_rows(reader.read(shares[index]), part):
                        yield pa.RecordBatch.from_arrays(rows.columns, names=names)

        # By plain names: mapInArrow does not find a column whose name holds a backtick or a dot.
        kinds = [field.dataType for field in spark_schema(reader.schema)]
        schema = StructType([StructField(*pair) for pair in zip(names, kinds, strict=True)])
        df = self._spark.range(count, numPartitions=count).mapInArrow(read, schema)
        return df.toDF(*reader.schema.names)
