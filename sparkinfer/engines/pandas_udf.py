"""The `pandas_udf` engine: one Spark task per accelerator scores in a Pandas UDF.

Each chunk is a DataFrame of its rows' numbers, in as many partitions as there are accelerators, and
its own Spark job.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.deaths import Deaths, is_death
from sparkinfer.engines.scoring_udf import with_scores
from sparkinfer.engines.spark_chunks import SparkChunks
from sparkinfer.engines.spark_worker import WorkerJob
from sparkinfer.engines.spark_workers import SparkWorkers
from sparkinfer.exceptions import JobError
from sparkinfer.plan.phases import LOAD
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkLedger, ChunkTask, ScoredChunk
from sparkinfer.plan.progress import Progress
from sparkinfer.spark.job_threads import JobThreads
from sparkinfer.spark.tables import with_spark_schema
from sparkinfer.workers.slot import WorkerSlot

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

T = TypeVar("T")

IN_FLIGHT = 3
"""Chunks whose jobs run or wait at the same time; more if a chunk does not fill all slots."""

MOST_COMMITS = 16
"""Chunks that are committed at once, before no more are scored."""


class PandasUdfEngine:
    """Scores chunks inside a scalar-iterator Pandas UDF; see `Engine`.

    Args:
        config: which device, and how many replicas.
        spark: the session.
    """

    def __init__(self, config: ScoringConfig, spark: SparkSession) -> None:
        self._spark = spark
        self._workers = SparkWorkers(config, spark, score_later=True)

    def __str__(self) -> str:
        return "pandas_udf"

    def workers(self) -> Workers:
        """Returns one replica per GPU, else per CPU slot; see `Engine`."""
        return self._workers.workers()

    def on_one_worker(self, act: Callable[[WorkerSlot], T], warm_up: Callable[[], None]) -> T:
        """Calls a function in one Python worker and returns its result; see `Engine`."""
        return self._workers.on_one_worker(act, warm_up)

    def scored(self, df: DataFrame, plan: Plan) -> DataFrame:
        """Returns a DataFrame with its scored columns, evaluated lazily."""
        return with_scores(df.repartition(plan.workers.tasks), WorkerJob(plan))

    def close(self) -> None:
        """Does nothing: a model is released with its worker, which Spark ends."""

    def score(
        self, plan: Plan, tasks: Iterable[ChunkTask], ledger: ChunkLedger, progress: Progress
    ) -> None:
        """Scores each chunk as its own Spark job; see `Engine`.

        Several jobs are submitted at a time, so that no slot is idle at the end of a chunk.
        """
        progress.enter(LOAD)
        plan = replace(plan, columns=with_spark_schema(plan.columns))
        server = self._workers.listen(progress)
        address = server.address if server else None
        chunks = SparkChunks(self._spark, plan, address, self._workers.now)
        deaths = Deaths(plan.notes, progress.lose_worker)
        try:
            with closing(JobThreads(self._spark)) as threads:
                _Scoring(chunks, ledger, threads, deaths, self._workers.now).run(tasks)
        finally:
            if server is not None:
                server.close()


class _Scoring:
    """The chunks of one call of `score`, several in flight.

    Committing a chunk has a thread of its own, so that the next one is submitted meanwhile. How
    many are in flight follows the workers that there are.
    """

    def __init__(
        self,
        chunks: SparkChunks,
        ledger: ChunkLedger,
        threads: JobThreads,
        deaths: Deaths,
        workers: Callable[[], Workers],
    ) -> None:
        self._chunks = chunks
        self._ledger = ledger
        self._threads = threads
        self._deaths = deaths
        self._workers = workers
        self._scoring: dict[Future[ScoredChunk], int] = {}
        self._committing: set[Future[None]] = set()

    def run(self, tasks: Iterable[ChunkTask]) -> None:
        for task in tasks:
            future = self._threads.submit(self._score, task)
            self._scoring[future] = self._chunks.spread(task.chunk.rows)
            while self._is_full():
                self._await_one()
        while self._scoring or self._committing:
            self._await_one()

    def _is_full(self) -> bool:
        if len(self._committing) > MOST_COMMITS:
            return True
        tasks = sum(self._scoring.values())
        return len(self._scoring) >= IN_FLIGHT and tasks >= IN_FLIGHT * self._workers().count

    def _await_one(self) -> None:
        running: list[Future[Any]] = [*self._scoring, *self._committing]
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            if future in self._committing:
                self._committing.discard(future)
                future.result()
                continue
            del self._scoring[future]
            self._committing.add(self._threads.submit(self._ledger.commit, future.result()))

    def _score(self, task: ChunkTask) -> ScoredChunk:
        """Returns a scored chunk, however often its worker dies if single texts explain it."""
        while True:
            attempt = self._deaths.attempt(task.chunk.number, uuid.uuid4().hex)
            try:
                return self._chunks.score(task, attempt)
            except JobError as error:
                if not is_death(error):
                    self._deaths.withdraw(attempt.launch)
                    raise
                self._deaths.add(task.chunk.number, error)
