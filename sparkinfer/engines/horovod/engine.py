"""The `horovod` engine: Spark prepares the input, ranks pull it through loaders and score it.

Three steps. Prepare: Spark tasks on the CPUs tokenise the rows and write row groups. Start: a
launcher starts all ranks at once. Score: each rank reads its share of the row groups, scores and
writes it, on its own. There is one launch for all chunks, for a launch costs many seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.horovod.chunk_commits import ChunkCommits
from sparkinfer.engines.horovod.launchers import LAUNCHERS, Launcher, choose_launcher
from sparkinfer.engines.horovod.prepare import PreparedFile, PrepareJob, prepare
from sparkinfer.engines.horovod.rank import PreparedChunk, RankJob, deal_chunk
from sparkinfer.engines.horovod.readers import choose_reader
from sparkinfer.engines.horovod.supervision import Supervisor
from sparkinfer.engines.isolation import DEATHS_BEFORE_ISOLATION
from sparkinfer.engines.pandas_udf import PandasUdfEngine
from sparkinfer.engines.spark_engine import SparkEngine
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, JobError
from sparkinfer.models.acceleration import Verdict
from sparkinfer.models.sources import ModelSource
from sparkinfer.models.tasks import column_metadata, get_task, scored_schema
from sparkinfer.plan.inputs import carried_columns
from sparkinfer.plan.ports import ScoredChunk, ScoringRun, Workers
from sparkinfer.plan.progress import PREPARE, SCORE, START, Progress
from sparkinfer.rows.writing import write_tables
from sparkinfer.spark.accelerators import count_slots, is_classic, why_slots_are_unknown
from sparkinfer.spark.tables import arrow_field
from sparkinfer.storage import join, make_folder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PREPARED = "prepared"
"""Folder of the prepared rows of a run."""

SPARK_SCHEMA_KEY = b"org.apache.spark.sql.parquet.row.metadata"
"""Where Spark's Parquet files keep their schema, with the metadata of its columns."""


class HorovodEngine(SparkEngine):
    """Scores a prepared Spark DataFrame in ranks."""

    keeps_gate_model = False  # ranks are processes of their own

    def __init__(
        self, config: ScoringConfig, spark: SparkSession, df: DataFrame | None = None
    ) -> None:
        super().__init__(config, spark, df)
        if not is_classic(spark):
            raise EngineUnavailableError(
                "engine='horovod' on Spark Connect: ranks are started through a SparkContext, "
                "which such a session has not; use a classic session or --engine pandas_udf"
            )
        self._launcher: Launcher = LAUNCHERS[choose_launcher(config.horovod.launcher)](
            spark, config.horovod.start_timeout_s
        )
        self._reader = choose_reader(config.horovod.reader, str(config.output))

    def find_workers(self) -> Workers:
        """Returns one rank per GPU, else per CPU slot; all of them run at once.

        Raises:
            ConfigError: there are fewer slots than ranks, or the launcher cannot work so.
            EngineUnavailableError: the launcher is not installed.
        """
        workers = super().find_workers()
        self._launcher.check(workers.kind)
        if why_slots_are_unknown(self._spark) is None:
            slots = count_slots(self._spark.sparkContext)
            if workers.count > slots:
                raise ConfigError(
                    f"num_workers={workers.count}: the executors hold {slots} tasks at once, and "
                    f"all ranks run at once; use num_workers={slots} or fewer, or add executors"
                )
        return workers

    def score(self, run: ScoringRun, progress: Progress) -> None:
        """Prepares all chunks, then has the ranks score them; see `Engine`.

        A dead rank ends the launch, so a chunk over which ranks died again and again is not left
        to ranks: Spark tasks score it in parts.
        """
        deadly = [task for task in run.tasks if task.deaths >= DEATHS_BEFORE_ISOLATION]
        spark_tasks = PandasUdfEngine(self._config, self._spark, self._df)
        for task in deadly:
            run.commit(spark_tasks.isolate(run, task, progress))
        run = replace(run, tasks=tuple(task for task in run.tasks if task not in deadly))
        progress.enter(PREPARE)
        prepared = self._prepare(run)
        schema = self._output_schema(run.source, run.verdict)
        chunks = self._share_out(run, prepared)
        self._commit_empty(run, chunks, schema)
        self._run_ranks(run, [c for c in chunks if any(c.row_groups)], schema, progress)

    def _share_out(
        self, run: ScoringRun, prepared: Mapping[int, Sequence[PreparedFile]]
    ) -> list[PreparedChunk]:
        """Returns the chunks with each rank's share of them; their folders are there."""
        world_size = self._accelerators().count
        chunks = []
        for turn, task in enumerate(run.tasks):
            make_folder(task.staging)
            shares = deal_chunk(prepared[task.chunk.number], world_size, turn)
            chunks.append(PreparedChunk(task.chunk.number, task.staging, shares))
        return chunks

    def _prepare(self, run: ScoringRun) -> dict[int, list[PreparedFile]]:
        found = self._accelerators()
        job = PrepareJob(
            self._config,
            run.source,
            found.kind,
            found.cores_per_task,
            carried=tuple(carried_columns(self._config, self._opened().columns)),
            reader=self._chunk_reader(run.read_from),
            folder=join(run.staging, PREPARED),
        )
        return prepare(self._spark, [task.chunk for task in run.tasks], job)

    def _commit_empty(
        self, run: ScoringRun, chunks: Sequence[PreparedChunk], schema: pa.Schema
    ) -> None:
        """Commits the chunks without rows: an output without rows has columns all the same."""
        for task, chunk in zip(run.tasks, chunks, strict=True):
            if not any(chunk.row_groups):
                write_tables(join(task.staging, "empty.parquet"), schema, [])
                run.commit(ScoredChunk(task.chunk, task.staging, ("empty.parquet",), 0.0))

    def _run_ranks(
        self,
        run: ScoringRun,
        chunks: Sequence[PreparedChunk],
        schema: pa.Schema,
        progress: Progress,
    ) -> None:
        """Has the ranks score the chunks, as many as there are, in one launch."""
        if not chunks:
            progress.enter(SCORE)
            return
        progress.enter(START)
        control = join(run.staging, "ranks")
        make_folder(control)
        world_size = self._accelerators().count
        server = self._listen(progress)
        worker = self._job(run.source, run.verdict, server.address if server else None)
        prepared = join(run.staging, PREPARED)
        job = RankJob(worker, tuple(chunks), prepared, schema, world_size, self._reader, control)
        commits = ChunkCommits(run, chunks, lambda reason: supervisor.abort(reason))
        supervisor = Supervisor(
            control,
            world_size,
            self._config.horovod.start_timeout_s,
            cancel=self._launcher.cancel,
            on_scoring=lambda: progress.enter(SCORE),
            on_result=commits.add,
        )
        launch_error = None
        with commits:
            try:
                with supervisor:
                    self._launcher.launch(job, worker.kind)
            except Exception as error:  # launchers raise what they please
                launch_error = error
            finally:
                if server is not None:
                    server.close()
            try:
                supervisor.conclude(launch_error)
            except JobError:
                if supervisor.deadly_chunk is not None:
                    run.note_deaths(supervisor.deadly_chunk, 1)
                raise

    def _output_schema(self, source: ModelSource, verdict: Verdict) -> pa.Schema:
        """Returns the schema of the scored files, Spark's notation of it among its metadata."""
        df = self._opened()
        carried = [df.schema[name] for name in carried_columns(self._config, df.columns)]
        fields = scored_schema(get_task(self._config.task), self._config.output_prefix)
        metadata = column_metadata(source.fingerprint, verdict.labels)
        scored = from_arrow_schema(fields)
        for field in scored.fields:
            field.metadata = dict(metadata)
        schema = pa.schema(
            [*map(arrow_field, carried), *(field.with_metadata(metadata) for field in fields)]
        )
        spark_schema = StructType([*carried, *scored.fields]).json()
        return schema.with_metadata({SPARK_SCHEMA_KEY: spark_schema.encode("utf-8")})
