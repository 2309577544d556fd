"""The `horovod` engine: Spark prepares the input, ranks pull it through loaders and score it.

Three steps. Prepare: Spark tasks on the CPUs tokenise the rows and write row groups. Start: a
launcher starts all ranks at once. Score: each rank reads its share of the row groups, scores and
writes it, on its own. There is one launch for all units of work, for a launch costs many seconds.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.base import InputTable, UnitResult, Workers, WorkUnit
from sparkinfer.engines.launchers import LAUNCHERS, Launcher, choose_launcher
from sparkinfer.engines.prepare import PrepareJob, check_carried, prepare
from sparkinfer.engines.rank_worker import Piece, RankJob
from sparkinfer.engines.readers import choose_reader
from sparkinfer.engines.spark_engine import SparkEngine
from sparkinfer.engines.supervision import RankResult, Supervisor
from sparkinfer.engines.writing import write_tables
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, RowConservationError
from sparkinfer.jobs.inputs import carried_columns
from sparkinfer.jobs.progress import PREPARE, SCORE, START, Progress
from sparkinfer.models.acceleration import Verdict
from sparkinfer.models.sources import ModelSource
from sparkinfer.models.tasks import column_metadata, get_task, scored_schema
from sparkinfer.spark.accelerators import count_slots, is_classic, why_slots_are_unknown
from sparkinfer.spark.tables import arrow_field
from sparkinfer.storage import join, make_folder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

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

    def open_input(self) -> InputTable:
        """Returns what the input holds; see `Engine`."""
        table = super().open_input()
        check_carried(self._opened(), carried_columns(self._config, table.columns))
        return table

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

    def score(
        self,
        units: Iterable[WorkUnit],
        source: ModelSource,
        verdict: Verdict,
        progress: Progress,
    ) -> Iterator[UnitResult]:
        """Yields each unit once all ranks have ended; see `Engine`."""
        progress.enter(PREPARE)
        pieces = tuple(self._prepare(unit, source) for unit in units)
        schema = self._output_schema(source, verdict)
        results = self._run_ranks(pieces, schema, source, verdict, progress)
        for piece in pieces:
            yield _unit_result(piece, schema, results)

    def _prepare(self, unit: WorkUnit, source: ModelSource) -> Piece:
        df = self._spread(self._opened())
        carried = tuple(carried_columns(self._config, df.columns))
        folder = join(unit.staging, "prepared")
        found = self._accelerators()
        prepared = prepare(
            self._spark,
            df,
            PrepareJob(self._config, source, found.kind, found.cores_per_task, carried, folder),
        )
        return Piece(unit.unit_id, unit.staging, prepared)

    def _spread(self, df: DataFrame) -> DataFrame:
        """Returns the input in enough partitions to keep the cores busy.

        Files are shuffled only where there are too few splits of them. Of a table or DataFrame
        nothing is known without evaluating it; Spark then chooses partitions by size.
        """
        if self._input_kind in ("DataFrame", "table"):
            return df.hint("rebalance")
        cores = self._spark.sparkContext.defaultParallelism
        return df if df.rdd.getNumPartitions() >= cores else df.repartition(cores)

    def _run_ranks(
        self,
        pieces: tuple[Piece, ...],
        schema: pa.Schema,
        source: ModelSource,
        verdict: Verdict,
        progress: Progress,
    ) -> list[RankResult]:
        """Returns what the ranks wrote, for as many units as there are, in one launch."""
        if not any(piece.prepared.rows for piece in pieces):
            progress.enter(SCORE)
            return []
        progress.enter(START)
        control = join(pieces[0].staging, "ranks")
        make_folder(control)
        world_size = self._accelerators().count
        server = self._listen(progress)
        worker = self._job(source, verdict, server.address if server else None)
        job = RankJob(worker, pieces, schema, world_size, self._reader, control)
        supervisor = Supervisor(
            control,
            world_size,
            self._config.horovod.start_timeout_s,
            cancel=self._launcher.cancel,
            on_scoring=lambda: progress.enter(SCORE),
        )
        launch_error = None
        try:
            with supervisor:
                self._launcher.launch(job, worker.kind)
        except Exception as error:  # launchers raise what they please
            launch_error = error
        finally:
            if server is not None:
                server.close()
        return supervisor.results(launch_error)

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


def _unit_result(piece: Piece, schema: pa.Schema, results: Iterable[RankResult]) -> UnitResult:
    """Returns the sum of what the ranks wrote for a piece.

    Raises:
        RowConservationError: that is not what was prepared.
    """
    of_piece = [result for result in results if result.unit_id == piece.unit_id]
    written = sum(result.rows for result in of_piece)
    if written != piece.prepared.rows:
        raise RowConservationError(
            f"{piece.prepared.rows} rows were prepared and {written} written; nothing was "
            "published. Run again, and with --set horovod.reader=pyarrow if it happens again"
        )
    files = [name for result in of_piece for name in result.files]
    if not files:  # an output without rows has columns all the same
        files = [f"part-00000-{uuid.uuid4()}.parquet"]
        write_tables(join(piece.staging, files[0]), schema, [])
    return UnitResult(piece.unit_id, tuple(files), piece.prepared.rows)
