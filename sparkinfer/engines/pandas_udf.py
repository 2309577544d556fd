"""The `pandas_udf` engine: Spark moves the rows, one task per accelerator scores them.

The DataFrame is repartitioned to the number of accelerators. Only the text column goes to Python;
the carried columns stay in the JVM. The UDF returns one struct, marked as not deterministic so
that Spark evaluates it once per row however many of its fields are selected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from pyspark.sql import Observation
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.pandas.types import from_arrow_schema

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.base import UnitResult, WorkUnit
from sparkinfer.engines.spark_engine import SparkEngine
from sparkinfer.engines.spark_worker import WorkerJob, score_partition
from sparkinfer.exceptions import JobError
from sparkinfer.jobs.inputs import carried_columns
from sparkinfer.jobs.progress import SCORE, Progress, ProgressAddress
from sparkinfer.models.acceleration import Verdict
from sparkinfer.models.sources import ModelSource
from sparkinfer.models.tasks import column_metadata, get_task, scored_schema
from sparkinfer.spark.errors import explain
from sparkinfer.spark.tables import quoted
from sparkinfer.storage import count_rows, join, names_in

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_STRUCT = "__sparkinfer_scored"
"""Column that holds the UDF's result until its fields are selected."""


class PandasUdfEngine(SparkEngine):
    """Scores a Spark DataFrame inside a scalar-iterator Pandas UDF."""

    def score(
        self,
        units: Iterable[WorkUnit],
        source: ModelSource,
        verdict: Verdict,
        progress: Progress,
    ) -> Iterator[UnitResult]:
        """Yields each unit once Spark has committed its files; see `Engine`."""
        progress.enter(SCORE)
        server = self._listen(progress)
        try:
            for unit in units:
                yield self._score_unit(unit, source, verdict, server.address if server else None)
        finally:
            if server is not None:
                server.close()

    def scored(self, source: ModelSource, verdict: Verdict) -> DataFrame:
        """Returns the input with its scored columns, not yet evaluated."""
        return self._score_columns(self._opened(), source, verdict)

    def _score_columns(
        self,
        df: DataFrame,
        source: ModelSource,
        verdict: Verdict,
        progress: ProgressAddress | None = None,
    ) -> DataFrame:
        job = self._job(source, verdict, progress)
        carried = carried_columns(self._config, df.columns)
        text = F.col(quoted(self._config.input_col))
        spread = df.repartition(self._accelerators().count)
        scored = spread.select(
            *[F.col(quoted(name)) for name in carried], _scoring_udf(job)(text).alias(_STRUCT)
        )
        return scored.select(
            *[F.col(quoted(name)) for name in carried],
            *_scored_columns(self._config, source, verdict),
        )

    def _score_unit(
        self,
        unit: WorkUnit,
        source: ModelSource,
        verdict: Verdict,
        address: ProgressAddress | None,
    ) -> UnitResult:
        observed = Observation("rows read")
        df = self._opened().observe(observed, F.count(F.lit(1)).alias("rows"))
        try:
            self._score_columns(df, source, verdict, address).write.parquet(unit.staging)
            files = tuple(name for name in names_in(unit.staging) if name.endswith(".parquet"))
            return UnitResult(unit.unit_id, files, self._rows_read(observed, unit, files))
        except Exception as error:
            raise JobError(explain(error)) from error

    def _rows_read(self, observed: Observation, unit: WorkUnit, files: Iterable[str]) -> int:
        """Returns the rows that the tasks read.

        A stage that ran again after a lost executor is observed twice; only where the figure is
        not that of the rows written are the input's rows counted by another pass.
        """
        read = int(observed.get.get("rows", 0))  # Spark optimises an empty input away
        error = self._config.output_prefix + "error"
        written = sum(count_rows(join(unit.staging, name), error)[0] for name in files)
        return read if read == written else self._opened().count()


def _scoring_udf(job: WorkerJob) -> Any:
    schema = scored_schema(get_task(job.config.task))

    def score(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        texts = (_texts(series) for series in batches)
        for scored in score_partition(job, texts):
            yield scored.to_pandas(types_mapper=_as_arrow)

    # The stubs of pyspark know no iterator of DataFrames as a result; pyspark itself does.
    make_udf: Any = pandas_udf
    return make_udf(score, returnType=from_arrow_schema(schema)).asNondeterministic()


def _texts(series: pd.Series) -> list[str | None]:
    texts: list[str | None] = series.astype(object).where(series.notna(), None).tolist()
    return texts


def _as_arrow(kind: pa.DataType) -> pd.ArrowDtype | None:
    """Keeps plain columns in Arrow memory, so that nulls and integers stay what they are.

    Lists become objects: pyspark goes through them in Python and takes only None for a null.
    """
    return None if pa.types.is_list(kind) else pd.ArrowDtype(kind)


def _scored_columns(config: ScoringConfig, source: ModelSource, verdict: Verdict) -> list[Any]:
    """Returns the fields of the struct as columns that say which model made them."""
    task = get_task(config.task)
    metadata = column_metadata(source.fingerprint, verdict.labels)
    names = scored_schema(task).names
    return [
        F.col(f"{_STRUCT}.{name}").alias(config.output_prefix + name, metadata=metadata)
        for name in names
    ]
