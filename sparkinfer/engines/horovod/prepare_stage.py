"""The prepare stage: Spark tasks tokenise chunks; see `sparkinfer.engines.horovod.prepare`.

A text that kills the tokenizer is found as one that kills the model; see `Suspects`. What was
prepared when a task died is not prepared again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sparkinfer.engines.deaths import Deaths, is_death
from sparkinfer.engines.horovod.prepare import (
    CARRIED,
    LISTS,
    TOKENS,
    Encoding,
    PrepareJob,
    prepare_part,
    write_list,
)
from sparkinfer.exceptions import JobError
from sparkinfer.plan.chunks import Chunk
from sparkinfer.rows.reading import share_out
from sparkinfer.spark.accelerators import GPUS_PER_TASK, cores_per_task
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import watched_job
from sparkinfer.spark.settings import setting
from sparkinfer.spark.slots import is_dynamic
from sparkinfer.spark.worker_end import end_worker
from sparkinfer.storage import join, make_folder, names_in
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Watchdog

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LEAST_PART_ROWS = 4096
"""Worth a task of their own."""


@dataclass(frozen=True)
class Beside:
    """What the stage leaves to others that run meanwhile.

    Attributes:
        tasks: maximum number of its tasks that run at the same time.
        group: of its Spark jobs, by which they can be cancelled.
    """

    tasks: int
    group: str


def prepare(
    spark: SparkSession,
    chunks: Sequence[Chunk],
    job: PrepareJob,
    deaths: Deaths,
    beside: Beside | None = None,
) -> dict[int, list[str]]:
    """Returns the names of the lists of each chunk's row groups, by the chunk's number.

    A Spark job writes the row groups and, per part, a list of those that it wrote, so that the
    driver need not hold them all. Where a task died, another job prepares what has no list.

    Args:
        spark: the session.
        chunks: to prepare.
        job: how.
        deaths: of workers, over these chunks and others.
        beside: how to share the cluster; None: nothing else runs.

    Raises:
        JobError: a task failed for good.
    """
    for name in (TOKENS, CARRIED, LISTS):
        make_folder(join(job.folder, name))
    most = beside.tasks if beside else spark.sparkContext.defaultParallelism
    parts = dict(enumerate(_parts(chunks, most)))
    waiting = dict(parts)
    stage = uuid.uuid4().hex
    while waiting:
        tasks = _tasks(waiting, deaths, beside.tasks if beside else len(waiting))
        try_ = _Try(job, stage, uuid.uuid4().hex, waiting, tasks)
        try:
            _run(spark, try_, beside.group if beside else None)
            listed = {try_.list_name(index) for task in try_.tasks for index in task}
        except JobError as error:
            if not is_death(error):
                deaths.withdraw(try_.launch)
                raise
            over = deaths.left_by(try_.launch)
            if not over:
                raise
            for number in over:
                deaths.add(number, error)
            listed = set(names_in(join(job.folder, LISTS)))
        waiting = {n: part for n, part in waiting.items() if try_.list_name(n) not in listed}
    lists: dict[int, list[str]] = {}
    for index, part in parts.items():
        lists.setdefault(part.number, []).append(_list_name(stage, index))
    return lists


@dataclass(frozen=True)
class _Try:
    """One Spark job of the stage.

    Attributes:
        job: how rows are prepared.
        stage: names what it is one of the tries of.
        launch: names it.
        parts: what may be prepared, by index.
        tasks: the indices of the parts that each task prepares.
    """

    job: PrepareJob
    stage: str
    launch: str
    parts: Mapping[int, Chunk]
    tasks: Sequence[Sequence[int]]

    def list_name(self, index: int) -> str:
        """Returns the name of the list of a part's row groups."""
        return _list_name(self.stage, index)


def _list_name(stage: str, index: int) -> str:
    return f"{stage}-{index:08d}.jsonl"


def _tasks(parts: Mapping[int, Chunk], deaths: Deaths, most: int) -> list[list[int]]:
    """Returns what each task of the next job prepares, of which there are so many at most.

    What a worker has died over is left to the end, and to one task: where an input runs alone,
    nothing beside it must fail the job and so end it.
    """
    plain = [index for index, part in parts.items() if not deaths.are_over(part.number)]
    return [plain[task::most] for task in range(min(most, len(plain)))] or [list(parts)]


def _run(spark: SparkSession, try_: _Try, group: str | None) -> None:
    """Runs a job of the stage.

    Raises:
        JobError: a task failed for good.
    """

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch.column(0).to_pylist():
                for index in try_.tasks[task]:
                    _prepare(try_, index)
            yield batch

    count = len(try_.tasks)
    try:
        written = spark.range(count, numPartitions=count).mapInArrow(write, "task long")
        act = partial(_without_gpus, spark, written)
        timeout_s = try_.job.plan.step_timeout_s
        watched_job(spark, act, "the prepare stage", timeout_s, group=group)
    except JobError:
        raise
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"the prepare stage failed: {explain(error)}") from error


def _prepare(try_: _Try, index: int) -> None:
    """Prepares one part, in a Spark task; if the tokenizer hangs, this process is ended."""
    from pyspark import TaskContext

    context, job, part = TaskContext.get(), try_.job, try_.parts[index]
    number = context.attemptNumber() if context else 0
    attempt = Deaths(job.plan.notes).attempt(part.number, try_.launch).of_task(index, number)
    with Suspects(attempt) as suspects:
        encoding = Encoding(job, suspects)
        where = f"chunk {part.number}, prepare"
        watch = Watchdog(
            encoding.activities,
            job.plan.stall_timeout_s,
            lambda stall: end_worker(str(stall)),
            where,
        )
        with watch:
            files = prepare_part(job, index, part, encoding)
            write_list(job.folder, try_.list_name(index), files)


def _parts(chunks: Sequence[Chunk], cores: int) -> list[Chunk]:
    """Returns what each task prepares: a chunk, or part of one if there are few chunks."""
    whole = [chunk for chunk in chunks if chunk.rows]
    if len(whole) >= cores:
        return whole
    max_rows = max(LEAST_PART_ROWS, -(-sum(chunk.rows for chunk in whole) // cores))
    return [part for chunk in whole for part in _parts_of(chunk, max_rows)]


def _parts_of(chunk: Chunk, max_rows: int) -> list[Chunk]:
    if chunk.pieces[0].is_gathered:
        shares = share_out(chunk.pieces, -(-chunk.rows // max_rows))
        return [Chunk(chunk.number, tuple(share)) for share in shares]
    cut = [part for piece in chunk.pieces for part in piece.cut(max_rows)]
    return [Chunk(chunk.number, (part,)) for part in cut]


def _without_gpus(spark: SparkSession, df: DataFrame) -> list[Any]:
    """Returns the rows of a DataFrame, with a last stage that requests cores but no GPU.

    With `spark.task.resource.gpu.amount` set, Spark would run only as many tasks as there are
    GPUs, and tokenising needs none. A profile with only task resources applies to the existing
    executors (standalone since Spark 3.4, YARN and Kubernetes since 3.5); with dynamic allocation
    it would request separate executors, so there the tasks keep their GPUs.
    """
    gpus = float(setting(spark, GPUS_PER_TASK) or 0)
    if gpus == 0 or is_dynamic(spark):
        return df.collect()
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    cores = cores_per_task(spark)
    profile = ResourceProfileBuilder().require(TaskResourceRequests().cpus(cores)).build
    return list(df.rdd.withResources(profile).collect())
