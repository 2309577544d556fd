"""The `horovod` engine: Spark prepares the input, ranks pull it through loaders and score it.

Three steps. Prepare: Spark tasks on the CPUs tokenise the rows and write row groups. Start: a
launcher starts all ranks together. Score: each rank independently reads, scores and writes its
share of the row groups. There is one launch for all chunks, since a launch takes many seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pyspark.sql.types import StructType

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.horovod.chunk_commits import ChunkCommits, SharedChunk
from sparkinfer.engines.horovod.launchers import LAUNCHERS, Launcher, choose_launcher
from sparkinfer.engines.horovod.prepare import PrepareJob, prepare, read_list
from sparkinfer.engines.horovod.rank import RankJob
from sparkinfer.engines.horovod.readers import choose_reader
from sparkinfer.engines.horovod.shares import ShareWriter
from sparkinfer.engines.horovod.supervision import Supervisor
from sparkinfer.engines.isolation import DEATHS_BEFORE_ISOLATION
from sparkinfer.engines.spark_chunks import SparkChunks
from sparkinfer.engines.spark_workers import SparkWorkers
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, JobError
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkLedger, ChunkTask, ScoredChunk
from sparkinfer.plan.progress import PREPARE, SCORE, START, Progress
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.spark.accelerators import count_slots, is_classic, why_slots_are_unknown
from sparkinfer.spark.job_threads import JobThreads
from sparkinfer.spark.settings import PLAIN_TIMES, settings
from sparkinfer.spark.tables import spark_schema
from sparkinfer.storage import join, make_folder
from sparkinfer.workers.channel import ProgressAddress
from sparkinfer.workers.slot import WorkerSlot

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = TypeVar("T")

PREPARED, SHARES, CONTROL = "prepared", "shares", "ranks"
"""Folders of a run: for the prepared rows, for each rank's share of them, for the ranks' beats."""

SPARK_SCHEMA_KEY = b"org.apache.spark.sql.parquet.row.metadata"
"""Where Spark's Parquet files keep their schema, with the metadata of its columns."""


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
        self._launcher.check(workers.device_type)
        if why_slots_are_unknown(self._spark) is None:
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

        A dead rank ends the launch, so a chunk over which ranks have died repeatedly is not given
        to ranks: Spark tasks score it in parts.
        """
        plan = replace(plan, columns=_with_spark_schema(plan.columns))
        server = self._workers.listen(progress)
        try:
            address = server.address if server else None
            for_ranks = []
            for task in tasks:
                if task.deaths >= DEATHS_BEFORE_ISOLATION:
                    self._isolate(plan, task, ledger, address)
                else:
                    for_ranks.append(task)
            progress.enter(PREPARE)
            lists = self._prepare(plan, for_ranks)
            shared = self._share_out(plan, for_ranks, lists, ledger)
            self._run_ranks(plan, shared, address, ledger, progress)
        finally:
            if server is not None:
                server.close()

    def _isolate(
        self, plan: Plan, task: ChunkTask, ledger: ChunkLedger, address: ProgressAddress | None
    ) -> None:
        chunks = SparkChunks(self._spark, plan, address)
        with settings(self._spark, PLAIN_TIMES), closing(JobThreads(self._spark)) as threads:
            ledger.commit(threads.submit(chunks.isolate, task).result())

    def _prepare(self, plan: Plan, tasks: Sequence[ChunkTask]) -> dict[int, list[str]]:
        folder = join(plan.staging, PREPARED)
        job = PrepareJob(plan, self._batching, plan.workers.cores, folder)
        return prepare(self._spark, [task.chunk for task in tasks], job)

    def _share_out(
        self,
        plan: Plan,
        tasks: Sequence[ChunkTask],
        lists: Mapping[int, Sequence[str]],
        ledger: ChunkLedger,
    ) -> dict[int, SharedChunk]:
        """Writes down each rank's share of the chunks; commits those without rows immediately."""
        prepared = join(plan.staging, PREPARED)
        shared: dict[int, SharedChunk] = {}
        with ShareWriter(join(plan.staging, SHARES), plan.workers.count) as writer:
            for task in tasks:
                make_folder(task.staging)
                number = task.chunk.number
                names = lists.get(number, ())
                files = [file for name in names for file in read_list(prepared, name)]
                ranks = writer.add(number, task.staging, files)
                if ranks:
                    shared[number] = SharedChunk(task, ranks)
                else:  # an output without rows still has columns
                    empty = ScoredWriter(task.staging, plan.columns, plan.measure)
                    file = empty.write_tables("empty.parquet", [])
                    ledger.commit(ScoredChunk(task.chunk, task.staging, (file,), 0.0))
        return shared

    def _run_ranks(
        self,
        plan: Plan,
        shared: Mapping[int, SharedChunk],
        address: ProgressAddress | None,
        ledger: ChunkLedger,
        progress: Progress,
    ) -> None:
        """Has the ranks score all chunks in one launch."""
        if not shared:
            progress.enter(SCORE)
            return
        progress.enter(START)
        control = join(plan.staging, CONTROL)
        make_folder(control)
        prepared, shares = join(plan.staging, PREPARED), join(plan.staging, SHARES)
        world_size = plan.workers.count
        job = RankJob(plan, address, prepared, shares, world_size, self._reader, control)
        commits = ChunkCommits(ledger, shared, lambda reason: supervisor.abort(reason))
        supervisor = Supervisor(
            control,
            world_size,
            self._start_timeout_s,
            cancel=self._launcher.cancel,
            on_scoring=lambda: progress.enter(SCORE),
            on_result=commits.add,
        )
        with commits:
            launch_error = self._launch(job, supervisor)
            try:
                supervisor.conclude(launch_error)
            except JobError:
                if supervisor.deadly_chunk is not None:
                    ledger.note_deaths(supervisor.deadly_chunk, 1)
                raise

    def _launch(self, job: RankJob, supervisor: Supervisor) -> Exception | None:
        """Runs the ranks until they have ended and returns what the launcher raised."""
        try:
            with supervisor:
                self._launcher.launch(job, job.plan.workers.device_type)
        except Exception as error:  # launchers may raise anything
            return error
        return None


def _with_spark_schema(columns: Columns) -> Columns:
    """Returns the columns with Spark's notation of the schema among a file's metadata."""
    scored = spark_schema(columns.scored)
    for field, of_arrow in zip(scored.fields, columns.scored, strict=True):
        metadata = of_arrow.metadata or {}
        field.metadata = {key.decode(): value.decode() for key, value in metadata.items()}
    schema = StructType([*spark_schema(columns.carried).fields, *scored.fields])
    return replace(columns, notes={SPARK_SCHEMA_KEY: schema.json().encode("utf-8")})
