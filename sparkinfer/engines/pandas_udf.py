"""The `pandas_udf` engine: Spark moves the rows, one task per accelerator scores them.

Each chunk is a DataFrame, repartitioned to the number of accelerators. Only the text column goes
to the model's process; the carried columns stay in the JVM. The UDF returns one struct, marked as
not deterministic so that Spark evaluates it once per row however many of its fields are selected.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructField, StructType

from sparkinfer.engines.isolation import DEATHS_BEFORE_ISOLATION, Isolation, deaths_in
from sparkinfer.engines.spark_engine import SparkEngine
from sparkinfer.engines.spark_worker import WorkerJob, score_partition
from sparkinfer.exceptions import JobError
from sparkinfer.models.acceleration import Verdict
from sparkinfer.models.sources import ModelSource
from sparkinfer.models.tasks import column_metadata, get_task, scored_schema
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.inputs import carried_columns
from sparkinfer.plan.ports import ChunkTask, ScoredChunk, ScoringRun
from sparkinfer.plan.progress import SCORE, Progress
from sparkinfer.rows.reading import InputFolders, cut_rows
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import JobThreads
from sparkinfer.spark.tables import quoted
from sparkinfer.storage import join, names_in
from sparkinfer.workers.channel import ProgressServer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

logger = logging.getLogger(__name__)

LEAST_ROWS = {"cpu": 128, "cuda": 4096}
"""That are worth a task of their own: its start and its first window cost about a second's rows."""

IN_FLIGHT = 3
"""Chunks whose jobs run or wait at once, and more where a chunk does not fill all slots."""

_STRUCT = "__sparkinfer_scored"
"""Column that holds the UDF's result until its fields are selected."""


class PandasUdfEngine(SparkEngine):
    """Scores a Spark DataFrame inside a scalar-iterator Pandas UDF."""

    def score(self, run: ScoringRun, progress: Progress) -> None:
        """Scores each chunk as a Spark job of its own; see `Engine`.

        Several have their jobs submitted, so that no slot is idle at a chunk's end.
        """
        progress.enter(SCORE)
        with self._job_threads(progress) as (jobs, server):
            waiting = deque(run.tasks)
            deadly: list[ChunkTask] = []
            tasks: dict[Future[ScoredChunk | ChunkTask], int] = {}
            while waiting or tasks:
                while waiting and (
                    len(tasks) < IN_FLIGHT or sum(tasks.values()) < IN_FLIGHT * self._slots()
                ):
                    task = waiting.popleft()
                    future = jobs.submit(self._score_chunk, run, task, server)
                    tasks[future] = self._spread(task.chunk.rows)
                for future in wait(tasks, return_when=FIRST_COMPLETED).done:
                    del tasks[future]
                    result = future.result()
                    if isinstance(result, ScoredChunk):
                        run.commit(result)
                    else:
                        deadly.append(result)
            # Alone: where a worker dies with its executor, it takes its neighbours along.
            for task in deadly:
                run.commit(jobs.submit(self._isolate, run, task, server).result())

    def isolate(self, run: ScoringRun, task: ChunkTask, progress: Progress) -> ScoredChunk:
        """Returns a chunk whose workers die, with an error in the rows that kill them."""
        with self._job_threads(progress) as (jobs, server):
            return jobs.submit(self._isolate, run, task, server).result()

    @contextmanager
    def _job_threads(
        self, progress: Progress
    ) -> Iterator[tuple[JobThreads, ProgressServer | None]]:
        server = self._listen(progress)
        jobs = JobThreads(self._spark)
        try:
            yield jobs, server
        finally:
            jobs.close()
            if server is not None:
                server.close()

    def _slots(self) -> int:
        return self._accelerators().count

    def scored(self, source: ModelSource, verdict: Verdict) -> DataFrame:
        """Returns the input with its scored columns, not yet evaluated."""
        return self._score_columns(self._opened(), self._job(source, verdict), self._slots())

    def _score_columns(self, df: DataFrame, job: WorkerJob, num_partitions: int) -> DataFrame:
        return self._add_columns(df.repartition(num_partitions), job, _scoring_udf(job))

    def _add_columns(self, df: DataFrame, job: WorkerJob, udf: Any) -> DataFrame:
        carried = [F.col(quoted(name)) for name in carried_columns(self._config, df.columns)]
        text = F.col(quoted(self._config.input_col))
        scored = df.select(*carried, udf(text).alias(_STRUCT))
        return scored.select(*carried, *_scored_columns(job))

    def _score_chunk(
        self, run: ScoringRun, task: ChunkTask, server: ProgressServer | None
    ) -> ScoredChunk | ChunkTask:
        """Returns a chunk once Spark has committed its files; runs in a thread of its own.

        Spark tries a task several times, but for `local[n]`, where it tries it once. The task of a
        chunk over which too many workers have died is returned as it is.
        """
        started = time.monotonic()
        deaths = task.deaths
        while deaths < DEATHS_BEFORE_ISOLATION:
            attempt = f"attempt-{deaths}"
            try:
                df = self._read_chunk(run.read_from, task.chunk)
                files = self._write_scored(run, task, attempt, df, server)
                seconds = time.monotonic() - started
                return ScoredChunk(task.chunk, task.staging, tuple(files), seconds)
            except JobError as error:
                died = deaths_in(error)
                if not died:
                    raise
                run.note_deaths(task.chunk.number, died)
                deaths += died
                logger.warning(
                    "chunk %d: its worker died %d times: %s", task.chunk.number, deaths, error
                )
        return task

    def _isolate(
        self, run: ScoringRun, task: ChunkTask, server: ProgressServer | None
    ) -> ScoredChunk:
        """Scores a chunk in parts, down to the rows that kill their worker."""
        started = time.monotonic()
        files: list[str] = []

        def score(first: int, rows: int) -> None:
            df = self._read_chunk(run.read_from, task.chunk, (first, rows))
            attempt = f"rows-{first}-{rows}-{uuid.uuid4().hex}"
            files.extend(self._write_scored(run, task, attempt, df, server, rows))

        def give_up(row: int, reason: str) -> None:
            logger.warning("chunk %d: row %d kills its worker", task.chunk.number, row)
            df = self._read_chunk(run.read_from, task.chunk, (row, 1))
            error = f"worker: its process died over this row ({reason})"
            job = self._job(run.source, run.verdict)
            unscored = self._add_columns(df, job, _giving_up_udf(job, error))
            files.extend(self._write(unscored, task, f"row-{row}"))

        Isolation(score, give_up).run(0, task.chunk.rows)
        return ScoredChunk(task.chunk, task.staging, tuple(files), time.monotonic() - started)

    def _write_scored(
        self,
        run: ScoringRun,
        task: ChunkTask,
        attempt: str,
        df: DataFrame,
        server: ProgressServer | None,
        rows: int | None = None,
    ) -> list[str]:
        """Returns the files of rows that were scored, below the chunk's staging folder."""
        job = self._job(run.source, run.verdict, server.address if server else None)
        job = replace(job, name=f"chunk {task.chunk.number} {attempt}")
        num_partitions = self._spread(task.chunk.rows if rows is None else rows)
        return self._write(self._score_columns(df, job, num_partitions), task, attempt)

    def _write(self, df: DataFrame, task: ChunkTask, attempt: str) -> list[str]:
        folder = join(task.staging, attempt)
        try:
            df.write.parquet(folder)
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(explain(error)) from error
        return [f"{attempt}/{name}" for name in names_in(folder) if name.endswith(".parquet")]

    def _read_chunk(
        self, read_from: InputFolders, chunk: Chunk, part: tuple[int, int] | None = None
    ) -> DataFrame:
        """Returns a chunk's rows, or a part of them (first row, number of rows).

        The chunk's pieces are read by as many tasks as there can be, a part by one.
        """
        reader = self._chunk_reader(read_from)
        names = [f"c{place}" for place in range(len(reader.schema))]
        count = 1 if part else max(1, min(len(chunk.pieces), self._slots()))
        shares = [chunk.pieces[place::count] for place in range(count)]

        def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for place in batch.column(0).to_pylist():
                    for rows in cut_rows(reader.read(shares[place]), part):
                        yield pa.RecordBatch.from_arrays(rows.columns, names=names)

        # By plain names: mapInArrow does not find a column whose name holds a backtick or a dot.
        opened = self._opened().schema
        kinds = [opened[name].dataType for name in reader.schema.names]
        schema = StructType([StructField(*pair) for pair in zip(names, kinds, strict=True)])
        df = self._spark.range(count, numPartitions=count).mapInArrow(read, schema)
        return df.toDF(*reader.schema.names)

    def _spread(self, rows: int) -> int:
        """Returns in how many Spark tasks so many rows are scored."""
        return max(1, min(self._slots(), math.ceil(rows / LEAST_ROWS[self._accelerators().kind])))


def _scoring_udf(job: WorkerJob) -> Any:
    def score(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        texts = (_texts(series) for series in batches)
        for scored in score_partition(job, texts):
            yield scored.to_pandas(types_mapper=_as_arrow)

    return _udf(score, job)


def _giving_up_udf(job: WorkerJob, error: str) -> Any:
    """Returns what gives rows nulls for scores, and the reason."""
    schema = scored_schema(get_task(job.config.task))

    def give_up(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        for texts in batches:
            columns = [
                pa.repeat(error, len(texts))
                if field.name == "error"
                else pa.nulls(len(texts), field.type)
                for field in schema
            ]
            unscored = pa.RecordBatch.from_arrays(columns, schema=schema)
            yield unscored.to_pandas(types_mapper=_as_arrow)

    return _udf(give_up, job)


def _udf(function: Any, job: WorkerJob) -> Any:
    # The stubs of pyspark know no iterator of DataFrames as a result; pyspark itself does.
    make_udf: Any = pandas_udf
    kind = from_arrow_schema(scored_schema(get_task(job.config.task)))
    return make_udf(function, returnType=kind).asNondeterministic()


def _texts(series: pd.Series) -> list[str | None]:
    texts: list[str | None] = series.astype(object).where(series.notna(), None).tolist()
    return texts


def _as_arrow(kind: pa.DataType) -> pd.ArrowDtype | None:
    """Keeps plain columns in Arrow memory, so that nulls and integers stay what they are.

    Lists become objects: pyspark goes through them in Python and takes only None for a null.
    """
    return None if pa.types.is_list(kind) else pd.ArrowDtype(kind)


def _scored_columns(job: WorkerJob) -> list[Any]:
    """Returns the fields of the struct as columns that say which model made them."""
    metadata = column_metadata(job.source.fingerprint, job.labels)
    names = scored_schema(get_task(job.config.task)).names
    return [
        F.col(f"{_STRUCT}.{name}").alias(job.config.output_prefix + name, metadata=metadata)
        for name in names
    ]
