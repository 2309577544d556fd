"""The `horovod` engine: Spark prepares the input, ranks pull it through loaders and score it.

Three steps. Prepare: Spark tasks on the CPUs tokenise the rows and write row groups. Start: a
launcher starts all ranks together. Score: each rank independently reads, scores and writes its
share of the row groups. There is one launch for all chunks, since a launch takes many seconds, and
another one after the death of a rank.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.deaths import Deaths
from sparkinfer.engines.horovod.chunk_commits import ChunkCommits, SharedChunk
from sparkinfer.engines.horovod.launchers import LAUNCHERS, Launcher, choose_launcher
from sparkinfer.engines.horovod.prepare import PrepareJob, read_list
from sparkinfer.engines.horovod.prepare_stage import prepare
from sparkinfer.engines.horovod.rank import RankJob
from sparkinfer.engines.horovod.readers import choose_reader
from sparkinfer.engines.horovod.shares import ShareWriter
from sparkinfer.engines.horovod.supervision import Supervisor
from sparkinfer.engines.spark_workers import SparkWorkers
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, JobError
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkLedger, ChunkTask, ScoredChunk
from sparkinfer.plan.progress import PREPARE, SCORE, START, Progress
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
        """Prepares all chunks, then has the ranks score them; see `Engine`.

        A dead rank ends the launch. What was not committed by then gets another one.
        """
        plan = replace(plan, columns=with_spark_schema(plan.columns))
        server = self._workers.listen(progress)
        try:
            progress.enter(PREPARE)
            waiting = {task.chunk.number: task for task in tasks}
            deaths = Deaths(plan.notes)
            lists = self._prepare(plan, [task.chunk for task in waiting.values()], deaths)
            launch = _Launch(plan, server.address if server else None, lists, ledger)
            while waiting:
                self._run_ranks(launch, waiting, deaths, progress)
            progress.enter(SCORE)
        finally:
            if server is not None:
                server.close()

    def _prepare(self, plan: Plan, chunks: Sequence[Chunk], deaths: Deaths) -> dict[int, list[str]]:
        folder = join(plan.staging, PREPARED)
        job = PrepareJob(plan, self._batching, plan.workers.cores, folder)
        return prepare(self._spark, chunks, job, deaths)

    def _run_ranks(
        self, launch: _Launch, waiting: dict[int, ChunkTask], deaths: Deaths, progress: Progress
    ) -> None:
        """Has the ranks score chunks in one launch; those that are committed wait no longer.

        Raises:
            JobError: it failed, and not by the death of a rank over a chunk.
        """
        name = uuid.uuid4().hex
        shared = self._share_out(launch, name, waiting, deaths)
        if not shared:
            return
        progress.enter(START)
        plan = launch.plan
        control = join(plan.staging, CONTROL, name)
        make_folder(control)
        job = RankJob(
            plan=plan,
            progress=launch.address,
            prepared=join(plan.staging, PREPARED),
            shares=join(plan.staging, SHARES, name),
            world_size=plan.workers.count,
            reader=self._reader,
            control=control,
            launch=name,
        )
        done = _Committed(launch.ledger, waiting)
        commits = ChunkCommits(done, shared, lambda reason: supervisor.abort(reason))
        supervisor = Supervisor(
            control,
            plan.workers.count,
            self._start_timeout_s,
            cancel=self._launcher.cancel,
            on_scoring=lambda: progress.enter(SCORE),
            on_result=commits.add,
        )
        with commits:
            launch_error = self._launch(job, supervisor)
            try:
                supervisor.conclude(launch_error)
            except JobError as error:
                if not supervisor.has_died:
                    deaths.withdraw(name)
                    raise
                # What a rank last told of itself may be older than its notes.
                chunks = {*deaths.left_by(name), *supervisor.deadly_chunks}
                if not chunks:
                    raise
                for number in chunks & waiting.keys():
                    deaths.add(number, error)

    def _share_out(
        self, launch: _Launch, name: str, waiting: dict[int, ChunkTask], deaths: Deaths
    ) -> dict[int, SharedChunk]:
        """Writes down each rank's share of the chunks; commits those without rows immediately.

        A chunk over which a rank has died is for one rank, so that suspects run one at a time.
        """
        plan = launch.plan
        prepared = join(plan.staging, PREPARED)
        shared: dict[int, SharedChunk] = {}
        with ShareWriter(join(plan.staging, SHARES, name), plan.workers.count) as writer:
            for number, task in list(waiting.items()):
                make_folder(task.staging)
                names = launch.lists.get(number, ())
                files = [file for name in names for file in read_list(prepared, name)]
                is_suspected = deaths.are_over(number)
                ranks = writer.add(number, task.staging, files, whole=is_suspected)
                if ranks:
                    shared[number] = SharedChunk(task, ranks)
                else:  # an output without rows still has columns
                    empty = ScoredWriter(task.staging, plan.columns, plan.measure)
                    file = empty.write_tables("empty.parquet", [])
                    launch.ledger.commit(ScoredChunk(task.chunk, task.staging, (file,), 0.0))
                    del waiting[number]
        return shared

    def _launch(self, job: RankJob, supervisor: Supervisor) -> Exception | None:
        """Runs the ranks until they have ended and returns what the launcher raised."""
        try:
            with supervisor:
                self._launcher.launch(job, job.plan.workers.device_type)
        except Exception as error:  # launchers may raise anything
            return error
        return None


@dataclass(frozen=True)
class _Launch:
    """What all launches of a call have in common.

    Attributes:
        plan: how rows are scored.
        address: where ranks report; None: nowhere.
        lists: names of the lists of each chunk's row groups.
        ledger: commits the chunks.
    """

    plan: Plan
    address: ProgressAddress | None
    lists: Mapping[int, Sequence[str]]
    ledger: ChunkLedger


class _Committed:
    """A `ChunkLedger` that takes the chunks that it commits off those that wait."""

    def __init__(self, ledger: ChunkLedger, waiting: dict[int, ChunkTask]) -> None:
        self._ledger = ledger
        self._waiting = waiting

    def commit(self, scored: ScoredChunk) -> None:
        self._ledger.commit(scored)
        self._waiting.pop(scored.chunk.number, None)
