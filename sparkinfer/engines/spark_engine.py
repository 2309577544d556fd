"""What the engines on Spark have in common: the input, the workers, the gate, the listener."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.spark_worker import WorkerJob, gate_outcome, read_outcome
from sparkinfer.exceptions import JobError
from sparkinfer.models.acceleration import Verdict, import_libraries
from sparkinfer.models.sources import ModelSource
from sparkinfer.plan.inputs import carried_columns, check_columns, input_format, type_name
from sparkinfer.plan.ports import InputTable, Workers
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.copying import FileCopier
from sparkinfer.rows.reading import ChunkReader, InputFolders
from sparkinfer.spark.accelerators import Accelerators, count_accelerators
from sparkinfer.spark.copies import copy_by_tasks
from sparkinfer.spark.errors import explain
from sparkinfer.spark.tables import arrow_field, check_types, read_files, read_table
from sparkinfer.workers.channel import ProgressAddress, ProgressServer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


STAGED_GROUP_BYTES = 8 << 20
"""At which a row group of a copied input ends: rows are read from their row group's start."""


class SparkEngine:
    """The part of an engine that is the same however Spark moves the rows.

    Args:
        config: what to score.
        spark: the session.
        df: taken in the place of `config.input`.
    """

    keeps_gate_model = True
    """Whether the Python worker that ran the gate is one that scores later."""

    def __init__(
        self, config: ScoringConfig, spark: SparkSession, df: DataFrame | None = None
    ) -> None:
        self._config = config
        self._spark = spark
        self._df = df
        self._input_kind = "DataFrame"
        self._found: Accelerators | None = None

    def open_input(self) -> InputTable:
        """Returns what the input holds; see `Engine`."""
        if self._df is None:
            self._input_kind = input_format(self._config)
            self._df = read_table(self._spark, self._input_kind, str(self._config.input))
        check_columns(self._config, dict(self._df.dtypes))
        columns = self._df.columns
        names = carried_columns(self._config, columns)
        check_types(self._df, [*names, self._config.input_col])
        carried = {name: type_name(arrow_field(self._df.schema[name]).type) for name in names}
        path = self._config.input if self._input_kind != "table" else None
        return InputTable(tuple(columns), self._input_kind, path, carried)

    def stage_input(self, folder: str, rows_per_file: int, paths: Sequence[str]) -> None:
        """Copies an input to a folder of Parquet files; see `Engine`."""
        df = self._opened()
        if paths:
            df = read_files(
                self._spark, self._input_kind, df.schema, paths, str(self._config.input)
            )
        try:
            writer = df.write.option("maxRecordsPerFile", rows_per_file)
            writer.option("parquet.block.size", STAGED_GROUP_BYTES).parquet(folder)
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"the input was not copied to {folder!r}: {explain(error)}") from error

    def copy_files(self, copier: FileCopier, names: Sequence[str]) -> dict[str, list[str]]:
        """Copies Parquet files, each in a Spark task; see `Engine`."""
        return copy_by_tasks(self._spark, copier, names)

    def find_workers(self) -> Workers:
        """Returns one replica per GPU, else per CPU slot; see `Engine`."""
        found = self._accelerators()
        return Workers(found.kind, found.count)

    def run_gate(self, source: ModelSource) -> Verdict:
        """Returns how every worker is to run the model, tried in one Python worker.

        The others import the libraries meanwhile, which takes as long as the gate.
        """
        job = self._job(source)
        keep_model = self.keeps_gate_model

        def gate(batches: Iterable[pd.DataFrame]) -> Iterable[pd.DataFrame]:
            for batch in batches:
                if batch["id"].iloc[0] == 0:
                    yield pd.DataFrame({"outcome": [gate_outcome(job, keep_model)]})
                elif keep_model:
                    import_libraries(job.config)

        workers = self._accelerators().count if keep_model else 1
        try:
            one_row_each = self._spark.range(workers, numPartitions=workers)
            rows = one_row_each.mapInPandas(gate, "outcome binary").collect()
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"the gate's worker failed: {explain(error)}") from error
        return read_outcome(bytes(rows[0].outcome))

    def _chunk_reader(self, read_from: InputFolders) -> ChunkReader:
        """Returns what reads the carried columns and the text of chunks in a worker."""
        df = self._opened()
        names = dict.fromkeys([*carried_columns(self._config, df.columns), self._config.input_col])
        return ChunkReader(read_from, pa.schema([arrow_field(df.schema[name]) for name in names]))

    def _opened(self) -> DataFrame:
        if self._df is None:
            self.open_input()
        assert self._df is not None  # set by open_input
        return self._df

    def _accelerators(self) -> Accelerators:
        if self._found is None:
            self._found = count_accelerators(
                self._spark, self._config.device, self._config.num_workers
            )
        return self._found

    def _listen(self, progress: Progress) -> ProgressServer | None:
        """Returns a listener that workers can reach, None where there cannot be one."""
        try:
            return ProgressServer(
                progress.update, self._spark.conf.get("spark.driver.host") or "127.0.0.1"
            )
        except Exception:  # Spark Connect, an address of another network: display only
            return None

    def _job(
        self,
        source: ModelSource,
        verdict: Verdict | None = None,
        progress: ProgressAddress | None = None,
    ) -> WorkerJob:
        found = self._accelerators()
        return WorkerJob(
            self._config,
            source,
            found.kind,
            found.cores_per_task,
            accepted=verdict.accepted if verdict else None,
            labels=verdict.labels if verdict else (),
            progress=progress,
        )
