"""The scalar-iterator Pandas UDF that adds the scored columns to a DataFrame.

Only the input columns go to the model's process; the carried columns stay in the JVM. The UDF
returns one struct and is marked non-deterministic, so that Spark evaluates it once per row however
many of its fields are selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.pandas.types import from_arrow_schema, from_arrow_type

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
    """Returns an input column as the UDF's argument, in a form that pandas does not change.

    Text goes as bytes: Spark does not make sure that it is UTF-8, and pandas fails a whole batch
    for one text that is not. It also spares Python strings that Arrow takes apart again. Numbers go
    as text: to pandas, a null and NaN are the same, and integers beside a null are floats. A struct
    goes in a list, for pandas has no null that is one.
    """
    column = F.col(quoted(field.name))
    if field.type == pa.string():
        return column.cast("binary")
    doubles, text = _with_doubles(field.type), _with_text(field.type)
    if text != field.type:
        for form in (doubles, text):
            column = column.cast(from_arrow_type(form, prefer_timestamp_ntz=True))
    return F.array(column) if pa.types.is_struct(field.type) else column


def _as_array(column: pd.Series[Any], kind: pa.DataType) -> pa.Array:
    if kind == pa.string():
        return pa.array(column, pa.binary(), from_pandas=True).view(pa.string())
    if _is_number(kind):
        exact = pa.array(column, pa.string(), from_pandas=True).cast(_with_doubles(kind))
        return exact.cast(kind, safe=False)  # a float that was made a double before
    if pa.types.is_struct(kind):
        column = column.str[0]
    if pa.types.is_nested(kind):
        return pa.array([_value(one, kind) for one in column], kind)
    return pa.array(column, kind, from_pandas=True)


def _with_doubles(kind: pa.DataType) -> pa.DataType:
    """Returns a type with doubles for floats: what a float's own text means as a double differs."""
    return _with_leaves(kind, lambda leaf: pa.float64() if pa.types.is_floating(leaf) else leaf)


def _with_text(kind: pa.DataType) -> pa.DataType:
    """Returns a type with text for numbers."""
    return _with_leaves(kind, lambda leaf: pa.string() if _is_number(leaf) else leaf)


def _with_leaves(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_with_leaves(kind.value_type, change))
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _with_leaves(kind.item_type, change))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _with_leaves(field.type, change)) for field in kind])
    return change(kind)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _value(given: Any, kind: pa.DataType) -> Any:
    """Returns a value whose numbers are given as text."""
    if given is None:
        return None
    if pa.types.is_list(kind):
        return [_value(one, kind.value_type) for one in given]
    if pa.types.is_map(kind):
        return [(key, _value(one, kind.item_type)) for key, one in dict(given).items()]
    if pa.types.is_struct(kind):
        return {field.name: _value(given[field.name], field.type) for field in kind}
    if pa.types.is_integer(kind):
        return int(given)
    return float(given) if pa.types.is_floating(kind) else given


def _series(batch: Any) -> tuple[pd.Series[Any], ...]:
    """Returns a UDF's arguments; Spark passes a single one without a tuple."""
    return batch if isinstance(batch, tuple) else (batch,)


def _as_frame(scored: pa.RecordBatch) -> pd.DataFrame:
    """Returns scored columns in the form that Spark accepts.

    Plain columns stay in Arrow memory, so that nulls and integers are preserved. Others become
    objects: pyspark iterates over them in Python and accepts only None as null.
    """
    pairs = zip(scored.schema.names, scored.columns, strict=True)
    frame: pd.DataFrame = pd.DataFrame({name: _as_series(column) for name, column in pairs})
    return frame


def _as_series(column: pa.Array) -> Any:
    if not pa.types.is_nested(column.type):
        return column.to_pandas(types_mapper=pd.ArrowDtype)
    is_plain_list = pa.types.is_list(column.type) and not pa.types.is_nested(column.type.value_type)
    # To numpy, too, a null among numbers is NaN; without one, arrays are quicker than lists.
    if is_plain_list and not column.values.null_count:
        return column.to_pandas()
    objects = [_object(one, column.type) for one in column.to_pylist()]
    return pd.Series(objects, dtype=object)


def _object(value: Any, kind: pa.DataType) -> Any:
    """Returns a value with numpy's NaN, which Arrow does not take for a null, and maps as dicts."""
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_object(one, kind.value_type) for one in value]
    if pa.types.is_map(kind):
        return {key: _object(one, kind.item_type) for key, one in value}
    if pa.types.is_struct(kind):
        return {field.name: _object(value[field.name], field.type) for field in kind}
    return _NAN if isinstance(value, float) and math.isnan(value) else value


_NAN = np.float32("nan")
