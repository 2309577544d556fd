"""The `horovod` engine: Spark prepares the input, ranks pull it through loaders and score it.

Three steps. Prepare: Spark tasks on the CPUs tokenise the rows and write row groups. Start: a
launcher starts all ranks together. Score: each rank independently reads, scores and writes its
share of the row groups. There is one launch for all chunks, since a launch takes many seconds, and
another one after the death of a rank. Where Spark has slots beside the ranks, only the first wave
of chunks is prepared before they start, and the next ones while they score.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.deaths import Deaths
from sparkinfer.engines.horovod.chunk_commits import ChunkCommits, SharedChunk
from sparkinfer.engines.horovod.control import RankResult
from sparkinfer.engines.horovod.feed import Feed
from sparkinfer.engines.horovod.launchers import LAUNCHERS, Launcher, choose_launcher
from sparkinfer.engines.horovod.prepare import PrepareJob, read_list
from sparkinfer.engines.horovod.rank import RankJob
from sparkinfer.engines.horovod.readers import choose_reader
from sparkinfer.engines.horovod.shares import Shares
from sparkinfer.engines.horovod.supervision import Supervisor
from sparkinfer.engines.horovod.waves import Waves
from sparkinfer.engines.spark_workers import SparkWorkers
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, JobError
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.phases import PREPARE, SCORE, START
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkLedger, ChunkTask, ScoredChunk
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.slots import count_slots, is_dynamic
from sparkinfer.spark.tables import with_spark_schema
from sparkinfer.storage import join, make_folder
from sparkinfer.workers.channel import ProgressAddress
from sparkinfer.workers.slot import WorkerSlot

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = TypeVar("T")

PREPARED, SHARES, CONTROL = "prepared", "shares", "ranks"
"""Folders of a run: for the prepared rows, for each rank's share of them, for the ranks' beats."""

CHUNKS_AT_ONCE = 64
"""Chunks whose row groups the driver holds at a time."""


class HorovodEngine:
    """Scores prepared rows in ranks; see `Engine`.

    Args:
        config: which device, how many replicas, which launcher and which reader.
        spark: a classic session.
    """

    def __init__(self, config: ScoringConfig, spark: SparkSession) -> None:
        if not is_classic(spark):
            raise EngineUnavailableError(
                "engine='horovod' on Spark Connect: ranks are started through a SparkContext, "
                "which such a session lacks; use a classic session or --engine pandas_udf"
            )
        self._spark = spark
        self._batching = config.batching
        self._start_timeout_s = config.horovod.start_timeout_s
        self._launcher_name = choose_launcher(config.horovod.launcher)
        self._launcher: Launcher = LAUNCHERS[self._launcher_name](spark, self._start_timeout_s)
        self._reader = choose_reader(config.horovod.reader, str(config.output))
        # Ranks are separate processes: the worker that runs the gate does not score later.
        self._workers = SparkWorkers(config, spark, score_later=False)

    def __str__(self) -> str:
        return f"horovod, launcher {self._launcher_name}, reader {self._reader}"

    def workers(self) -> Workers:
        """Returns one rank per GPU, else per CPU slot; all of them run at the same time.

        Raises:
            ConfigError: there are fewer slots than ranks, or the launcher does not support the
                configuration.
            EngineUnavailableError: the launcher is not installed.
        """
        workers = self._workers.workers()
        if workers.device_type == "cuda" and workers.gpus_each > 1:
            raise ConfigError(
                f"parallel.tensor={workers.gpus_each} with engine='horovod' on GPUs: launchers "
                "give each rank one GPU; use engine='pandas_udf'"
            )
        self._launcher.check(workers.device_type)
        if not is_dynamic(self._spark):
            slots = count_slots(self._spark.sparkContext)
            if workers.count > slots:
                raise ConfigError(
                    f"num_workers={workers.count}: the executors run {slots} tasks at a time, and "
                    f"all ranks must run together; use num_workers={slots} or fewer, or add "
                    "executors"
                )
        return workers

    def on_one_worker(self, act: Callable[[WorkerSlot], T], warm_up: Callable[[], None]) -> T:
        """Calls a function in one Python worker and returns its result; see `Engine`."""
        return self._workers.on_one_worker(act, warm_up)

    def close(self) -> None:
        """Does nothing: a model is released with its worker, which Spark ends."""

    def score(
        self, plan: Plan, tasks: Iterable[ChunkTask], ledger: ChunkLedger, progress: Progress
    ) -> None:
        """Prepares chunks wave after wave and has the ranks score them; see `Engine`.

        A dead rank ends the launch. What was not committed by then gets another one.
        """
        plan = replace(plan, columns=with_spark_schema(plan.columns))
        server = self._workers.listen(progress)
        try:
            waiting = {task.chunk.number: task for task in tasks}
            deaths = Deaths(plan.notes, progress.lose_worker)
            waves = self._waves(plan, [task.chunk for task in waiting.values()], deaths)
            address = server.address if server else None
            scoring = _Scoring(plan, address, waves, waiting, deaths, ledger, progress)
            while waiting:
                if waves.lists.keys().isdisjoint(waiting):
                    progress.enter(PREPARE)
                    waves.prepare_before()
                self._run_ranks(scoring)
            progress.enter(SCORE)
        finally:
            if server is not None:
                server.close()

    def _waves(self, plan: Plan, chunks: Sequence[Chunk], deaths: Deaths) -> Waves:
        folder = join(plan.staging, PREPARED)
        job = PrepareJob(plan, self._batching, plan.workers.cores, folder)
        return Waves(self._spark, chunks, job, deaths)

    def _run_ranks(self, scoring: _Scoring) -> None:
        """Has the ranks score chunks in one launch; those that are committed wait no longer.

        Raises:
            JobError: it failed, and not by the death of a rank over a chunk.
        """
        plan, name = scoring.plan, uuid.uuid4().hex
        shares = Shares(join(plan.staging, SHARES, name), plan.workers.count)
        done = _Committed(scoring.ledger, scoring.waiting)
        with ChunkCommits(done, lambda reason: supervisor.abort(reason)) as commits:
            deal = partial(scoring.deal, shares, commits)
            if not deal(scoring.waves.lists):
                return
            scoring.progress.enter(START)
            job = self._rank_job(scoring, name)
            make_folder(job.control)

            def take(result: RankResult) -> None:
                shares.done(result.chunk, result.rank)
                commits.add(result)

            supervisor = Supervisor(
                job.control,
                plan.workers.count,
                self._start_timeout_s,
                cancel=self._launcher.cancel,
                on_scoring=lambda: scoring.progress.enter(SCORE),
                on_result=take,
            )
            feed = Feed(self._spark, scoring.waves, shares, deal, supervisor.abort)
            launch_error = self._launch(job, supervisor, feed)
            try:
                supervisor.conclude(launch_error)
            except JobError as error:
                scoring.judge(name, supervisor, feed.error, error)

    def _rank_job(self, scoring: _Scoring, name: str) -> RankJob:
        plan = scoring.plan
        return RankJob(
            plan=plan,
            progress=scoring.address,
            prepared=join(plan.staging, PREPARED),
            shares=join(plan.staging, SHARES, name),
            world_size=plan.workers.count,
            reader=self._reader,
            control=join(plan.staging, CONTROL, name),
            launch=name,
        )

    def _launch(self, job: RankJob, supervisor: Supervisor, feed: Feed) -> Exception | None:
        """Runs the ranks until they have ended and returns what the launcher raised."""
        try:
            with supervisor, feed:
                self._launcher.launch(job, job.plan.workers.device_type)
        except Exception as error:  # launchers may raise anything
            return error
        return None


@dataclass(frozen=True)
class _Scoring:
    """What all launches of a call have in common.

    Attributes:
        plan: how rows are scored.
        address: where ranks report; None: nowhere.
        waves: prepare the chunks.
        waiting: those that are not committed, by number.
        deaths: of workers over them.
        ledger: commits them.
        progress: of the run.
    """

    plan: Plan
    address: ProgressAddress | None
    waves: Waves
    waiting: dict[int, ChunkTask]
    deaths: Deaths
    ledger: ChunkLedger
    progress: Progress

    def deal(self, shares: Shares, commits: ChunkCommits, numbers: Iterable[int]) -> bool:
        """Deals prepared chunks to the ranks; those without rows are committed.

        Returns:
            Whether the ranks have anything to do.
        """
        dealt = 0
        for number in [number for number in numbers if number in self.waiting]:
            if self._deal_chunk(shares, commits, self.waiting[number]):
                dealt += 1
                if dealt % CHUNKS_AT_ONCE == 0:
                    shares.publish()
        shares.publish()
        return dealt > 0

    def _deal_chunk(self, shares: Shares, commits: ChunkCommits, task: ChunkTask) -> bool:
        """Deals a chunk; returns whether it has rows.

        One over which a rank has died is for one rank, so that suspects run one at a time.
        """
        number = task.chunk.number
        make_folder(task.staging)
        prepared = join(self.plan.staging, PREPARED)
        files = [file for name in self.waves.lists[number] for file in read_list(prepared, name)]
        ranks = shares.add(number, task.staging, files, whole=self.deaths.are_over(number))
        if ranks:
            commits.expect(SharedChunk(task, ranks))
        else:
            self._commit_empty(task)
        return ranks > 0

    def _commit_empty(self, task: ChunkTask) -> None:
        """Commits a chunk without rows, whose output still has columns."""
        empty = ScoredWriter(task.staging, self.plan.columns, self.plan.measure)
        file = empty.write_tables("empty.parquet", [])
        self.ledger.commit(ScoredChunk(task.chunk, task.staging, (file,), 0.0))
        del self.waiting[task.chunk.number]

    def judge(
        self, launch: str, supervisor: Supervisor, feed_error: Exception | None, error: JobError
    ) -> None:
        """Notes of which chunks a rank of a launch has died.

        Raises:
            Exception: the launch failed otherwise.
        """
        if feed_error is not None or not supervisor.has_died:
            self.deaths.withdraw(launch)
            raise feed_error or error
        # What a rank last reported of itself may be older than its notes.
        chunks = {*self.deaths.left_by(launch), *supervisor.deadly_chunks}
        if not chunks:
            raise error
        for number in chunks & self.waiting.keys():
            self.deaths.add(number, error)


class _Committed:
    """A `ChunkLedger` that takes the chunks that it commits off those that wait."""

    def __init__(self, ledger: ChunkLedger, waiting: dict[int, ChunkTask]) -> None:
        self._ledger = ledger
        self._waiting = waiting

    def commit(self, scored: ScoredChunk) -> None:
        self._ledger.commit(scored)
        self._waiting.pop(scored.chunk.number, None)
