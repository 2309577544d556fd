"""What the engines on Spark have in common: the input, the workers, the gate, the listener."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.base import InputTable, Workers
from sparkinfer.engines.spark_worker import WorkerJob, gate_outcome, read_outcome
from sparkinfer.exceptions import JobError
from sparkinfer.jobs.inputs import check_columns, input_format
from sparkinfer.jobs.progress import Progress, ProgressAddress, ProgressServer
from sparkinfer.models.acceleration import Verdict, import_libraries
from sparkinfer.models.sources import ModelSource
from sparkinfer.spark.accelerators import Accelerators, count_accelerators
from sparkinfer.spark.errors import explain
from sparkinfer.spark.tables import read_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


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
        is_parquet = self._input_kind == "parquet"
        total = self._df.count() if is_parquet else None  # from the footers
        is_path = self._input_kind not in ("DataFrame", "table")
        path = self._config.input if is_path else None
        return InputTable(tuple(self._df.columns), total, path)

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
                progress, self._spark.conf.get("spark.driver.host") or "127.0.0.1"
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
        accepted = verdict.accepted if verdict else None
        return WorkerJob(self._config, source, found.kind, found.cores_per_task, accepted, progress)
