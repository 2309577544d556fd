"""The scalar-iterator Pandas UDF that adds the scored columns to a DataFrame.

Only the input columns go to the model's process; the carried columns stay in the JVM. The UDF
returns one struct and is marked non-deterministic, so that Spark evaluates it once per row however
many of its fields are selected.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.pandas.types import from_arrow_schema

from sparkinfer.engines.spark_worker import WorkerJob, score_partition
from sparkinfer.plan.plan import Plan
from sparkinfer.spark.tables import quoted

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_STRUCT = "__sparkinfer_scored"
"""Column that holds the UDF's result until its fields are selected."""


def with_scores(df: DataFrame, job: WorkerJob) -> DataFrame:
    """Returns the carried columns and the scored ones, evaluated lazily."""
    inputs = list(job.plan.columns.inputs)

    def score(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        for scored in score_partition(job, (_as_rows(batch, inputs) for batch in batches)):
            yield _as_frame(scored)

    return _with_columns(df, job.plan, score)


def _with_columns(df: DataFrame, plan: Plan, function: Any) -> DataFrame:
    # pyspark accepts an iterator of DataFrames as a result; its type stubs do not.
    make_udf: Any = pandas_udf
    udf = make_udf(function, returnType=from_arrow_schema(_unprefixed(plan))).asNondeterministic()
    carried = [F.col(quoted(name)) for name in plan.columns.carried.names]
    inputs = [_argument(field) for field in plan.columns.inputs]
    scored = df.select(*carried, udf(*inputs).alias(_STRUCT))
    columns = [
        F.col(f"{_STRUCT}.{quoted(plain)}").alias(field.name, metadata=_metadata(field))
        for plain, field in zip(_unprefixed(plan).names, plan.columns.scored, strict=True)
    ]
    return scored.select(*carried, *columns)


def _unprefixed(plan: Plan) -> pa.Schema:
    """Returns the scored columns with the processor's names for them."""
    prefix = plan.processor.prefix
    return pa.schema(
        [
            pa.field(field.name.removeprefix(prefix), field.type, field.nullable)
            for field in plan.columns.scored
        ]
    )


def _metadata(field: pa.Field) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}


def _as_rows(batch: Any, inputs: list[pa.Field]) -> pa.RecordBatch:
    """Returns a UDF's arguments, one Series per input column, as Arrow."""
    pairs = zip(_series(batch), inputs, strict=True)
    arrays = [_as_array(column, field.type) for column, field in pairs]
    return pa.RecordBatch.from_arrays(arrays, names=[field.name for field in inputs])


def _argument(field: pa.Field) -> Column:
    """Returns an input column as the UDF's argument.

    Text goes as bytes: Spark does not see to it that it is UTF-8, and pandas fails a whole batch
    for one text that is not. It also spares Python strings that Arrow takes apart again.
    """
    column = F.col(quoted(field.name))
    return column.cast("binary") if field.type == pa.string() else column


def _as_array(column: pd.Series[Any], kind: pa.DataType) -> pa.Array:
    if kind != pa.string():
        return pa.array(column, kind, from_pandas=True)
    return pa.array(column, pa.binary(), from_pandas=True).view(pa.string())


def _series(batch: Any) -> tuple[pd.Series[Any], ...]:
    """Returns a UDF's arguments; Spark passes a single one without a tuple."""
    return batch if isinstance(batch, tuple) else (batch,)


def _as_frame(scored: pa.RecordBatch) -> pd.DataFrame:
    """Returns scored columns in the form that Spark accepts.

    Plain columns stay in Arrow memory, so that nulls and integers are preserved. Lists become
    objects: pyspark iterates over them in Python and accepts only None as null.
    """
    frame: pd.DataFrame = scored.to_pandas(
        types_mapper=lambda kind: None if pa.types.is_nested(kind) else pd.ArrowDtype(kind)
    )
    return frame
