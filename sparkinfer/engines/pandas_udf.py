"""The `pandas_udf` engine: Spark moves the rows, one task per accelerator scores them.

The DataFrame is repartitioned to the number of accelerators. Only the text column goes to Python;
the carried columns stay in the JVM. The UDF returns one struct, marked as not deterministic so
that Spark evaluates it once per row however many of its fields are selected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from pyspark.sql import Observation
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.pandas.types import from_arrow_schema

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.base import InputTable, UnitResult, Workers, WorkUnit
from sparkinfer.engines.spark_worker import (
    WorkerJob,
    gate_outcome,
    read_outcome,
    score_partition,
)
from sparkinfer.exceptions import InputError, JobError
from sparkinfer.jobs.inputs import carried_columns, check_columns, input_format
from sparkinfer.jobs.progress import Progress, ProgressAddress, ProgressServer
from sparkinfer.models.acceleration import Verdict, import_libraries
from sparkinfer.models.sources import ModelSource
from sparkinfer.models.tasks import column_metadata, get_task, scored_schema
from sparkinfer.spark.accelerators import Accelerators, count_accelerators
from sparkinfer.storage import count_rows, join, names_in

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_STRUCT = "__sparkinfer_scored"
"""Column that holds the UDF's result until its fields are selected."""

CSV_OPTIONS = {"header": "true", "multiLine": "true", "escape": '"', "nullValue": "\x00"}
"""RFC 4180: a header line, line breaks within quotes, quotes doubled. All columns are strings.

A field without anything is null and "" is an empty text: only with a null value other than the
empty text does Spark tell them apart.
"""


class PandasUdfEngine:
    """Scores a Spark DataFrame inside a scalar-iterator Pandas UDF.

    Args:
        config: what to score.
        spark: the session.
        df: taken in the place of `config.input`.
    """

    def __init__(
        self, config: ScoringConfig, spark: SparkSession, df: DataFrame | None = None
    ) -> None:
        self._config = config
        self._spark = spark
        self._df = df
        self._accelerators: Accelerators | None = None

    def open_input(self) -> InputTable:
        """Returns what the input holds; see `Engine`."""
        kind = "DataFrame" if self._df is not None else input_format(self._config)
        if self._df is None:
            self._df = _read(self._spark, kind, str(self._config.input))
        columns = self._df.columns
        check_columns(self._config, dict(self._df.dtypes))
        total = self._df.count() if kind == "parquet" else None  # from the footers
        path = None if kind in ("DataFrame", "table") else self._config.input
        return InputTable(tuple(columns), total, path)

    def find_workers(self) -> Workers:
        """Returns one replica per GPU, else per CPU slot; see `Engine`."""
        found = self._found_accelerators()
        return Workers(found.kind, found.count)

    def run_gate(self, source: ModelSource) -> Verdict:
        """Returns how every worker is to run the model, tried in one Python worker.

        The others import the libraries meanwhile, which takes as long as the gate.
        """
        job = self._job(source)

        def gate(batches: Iterable[pd.DataFrame]) -> Iterable[pd.DataFrame]:
            for batch in batches:
                if batch["id"].iloc[0] == 0:
                    yield pd.DataFrame({"outcome": [gate_outcome(job)]})
                else:
                    import_libraries(job.config)

        workers = self._found_accelerators().count
        try:
            one_row_each = self._spark.range(workers, numPartitions=workers)
            rows = one_row_each.mapInPandas(gate, "outcome binary").collect()
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"the gate's worker failed: {explain(error)}") from error
        return read_outcome(bytes(rows[0].outcome))

    def score(
        self,
        units: Iterable[WorkUnit],
        source: ModelSource,
        verdict: Verdict,
        progress: Progress,
    ) -> Iterator[UnitResult]:
        """Yields each unit once Spark has committed its files; see `Engine`."""
        server = _listen(self._spark, progress)
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
        text = F.col(_quoted(self._config.input_col))
        spread = df.repartition(self._found_accelerators().count)
        scored = spread.select(
            *[F.col(_quoted(name)) for name in carried], _scoring_udf(job)(text).alias(_STRUCT)
        )
        return scored.select(
            *[F.col(_quoted(name)) for name in carried],
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

    def _opened(self) -> DataFrame:
        if self._df is None:
            self.open_input()
        assert self._df is not None  # set by open_input
        return self._df

    def _found_accelerators(self) -> Accelerators:
        if self._accelerators is None:
            self._accelerators = count_accelerators(
                self._spark, self._config.device, self._config.num_workers
            )
        return self._accelerators

    def _job(
        self,
        source: ModelSource,
        verdict: Verdict | None = None,
        progress: ProgressAddress | None = None,
    ) -> WorkerJob:
        found = self._found_accelerators()
        accepted = verdict.accepted if verdict else None
        return WorkerJob(self._config, source, found.kind, found.cores_per_task, accepted, progress)


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


def _read(spark: SparkSession, kind: str, path: str) -> DataFrame:
    try:
        if kind == "table":
            return spark.read.table(path)
        reader = spark.read.options(**CSV_OPTIONS) if kind == "csv" else spark.read
        return reader.format(kind).load(path)
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise InputError(f"input {path!r} cannot be read as {kind}: {explain(error)}") from error


def _listen(spark: SparkSession, progress: Progress) -> ProgressServer | None:
    """Returns a listener that executors can reach, None where there cannot be one."""
    try:
        return ProgressServer(progress, spark.conf.get("spark.driver.host") or "127.0.0.1")
    except Exception:  # Spark Connect, an address of another network: display only
        return None


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


_OUR_ERROR = re.compile(r"sparkinfer\.exceptions\.\w+: (.+)")
_PYTHON_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Exit)\b.*)$", re.MULTILINE)


def explain(error: Exception) -> str:
    """Returns the one line of a Spark error that says what happened."""
    text = str(error)
    ours = _OUR_ERROR.findall(text)
    if ours:
        return str(ours[-1]).strip()
    if "Traceback (most recent call last)" in text:
        python = _PYTHON_ERROR.findall(text.split("\n\tat ", 1)[0])
        if python:
            return str(python[-1]).strip()
    caused = re.findall(r"Caused by: (.+)", text)
    return str(caused[-1] if caused else text).strip().split("\n", 1)[0]
