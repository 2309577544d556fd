"""An input that Spark reads: a table, a view, a query, a DataFrame."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.types import NullType

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.plan.inputs import spark_kind
from sparkinfer.plan.ports import InputTable
from sparkinfer.plan.table_state import Mark, TableState
from sparkinfer.spark.each_file import on_each_file
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import in_job_thread, watched_job
from sparkinfer.spark.settings import PLAIN_TIMES, settings
from sparkinfer.spark.tables import arrow_schema, quoted, quoted_table, read_table
from sparkinfer.storage import literal_path

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructField

T = TypeVar("T")

COPIED_GROUP_BYTES = 8 << 20
"""Size of a row group in a copied input: rows are read from their row group's start."""

LOOK = "a look at all rows of the input"
"""What is waited for where the input is counted or compared."""

_MARKING = re.compile(r"(tiny|small|big)?int|float|double|decimal.*|date|timestamp.*|string")


class SparkInput:
    """The configured table or query, or a DataFrame in its place; see `InputSource`.

    Args:
        config: names the input.
        spark: the session.
        df: used in place of `config.input`.
    """

    def __init__(
        self, config: ScoringConfig, spark: SparkSession, df: DataFrame | None = None
    ) -> None:
        self._config = config
        self._spark = spark
        self._df = df

    def open(self) -> InputTable:
        """Returns what the input holds."""
        kind, name = "DataFrame", None
        df = self._df
        version = self._config.input_version
        if df is None:
            kind, name = spark_kind(self._config) or "table", str(self._config.input)
            df = in_job_thread(self._spark, partial(read_table, self._spark, kind, name, version))
        schema, refused = arrow_schema(df.schema)
        table = _Table(self._spark, df, name if kind == "table" else None)
        return InputTable(tuple(df.columns), kind, schema, refused, table=table)


class _Table:
    """What Spark reads; see `TableAccess`.

    Args:
        spark: the session.
        df: the rows.
        name: of the table, None for a query or a DataFrame.
    """

    def __init__(self, spark: SparkSession, df: DataFrame, name: str | None) -> None:
        self._spark = spark
        self._df = df
        self._name = name

    def first_rows(self, columns: pa.Schema, rows: int) -> pa.RecordBatch:
        """Returns at most so many rows; see `TableAccess`."""
        first = self._df.select(*map(quoted, columns.names)).limit(rows)
        try:
            found = watched_job(self._spark, first.collect, "the first rows of the input")
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"the input could not be read: {explain(error)}") from error
        listed = [row.asDict(recursive=True) for row in found]
        return pa.RecordBatch.from_pylist(listed, columns)

    def copy(
        self, folder: str, rows_per_file: int, columns: Sequence[str], beyond: Mark | None
    ) -> None:
        """Copies rows to a folder of Parquet files; see `TableAccess`."""
        df = self._df if beyond is None else self._df.where(_is_beyond(self._df, beyond))
        kept = [_without_void(field) for field in df.schema if field.name in set(columns)]
        try:
            with settings(self._spark, PLAIN_TIMES):
                writer = df.select(*kept).write.option("maxRecordsPerFile", rows_per_file)
                writer.option("parquet.block.size", COPIED_GROUP_BYTES)
                watched_job(self._spark, partial(writer.parquet, folder), "the copy of the input")
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"copying the input to {folder!r} failed: {explain(error)}") from error

    def state(self, columns: Sequence[str], until: Mark | None) -> TableState:
        """Returns what the input is now; see `TableAccess`."""
        df = self._df if until is None else self._df.where(~_is_beyond(self._df, until))
        if _is_repeatable(df):
            return watched_job(self._spark, partial(_state, df, columns), LOOK)
        return TableState(watched_job(self._spark, df.count, LOOK), None)

    def state_of_copy(self, paths: Sequence[str], columns: Sequence[str]) -> TableState:
        """Returns the same for copied files; see `TableAccess`."""
        return watched_job(self._spark, lambda: _state(self._copied(paths), columns), LOOK)

    def on_each(self, act: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Calls a function with each name; see `TableAccess`."""
        return on_each_file(self._spark, act, names)

    def version(self) -> str | None:
        """Returns the version of a table that keeps a history; see `TableAccess`."""
        if self._name is None:
            return None
        try:
            asked = f"DESCRIBE HISTORY {quoted_table(self._name)} LIMIT 1"
            rows = in_job_thread(self._spark, lambda: self._spark.sql(asked).collect())
            return str(rows[0]["version"])
        except Exception:  # the statement, or such a table, is not known here
            return None

    def mark(self, paths: Sequence[str], column: str) -> Mark | None:
        """Returns the largest value of a column in copied files; see `TableAccess`."""
        kind = self._df.schema[column].dataType.simpleString()
        if not _MARKING.fullmatch(kind):
            raise ConfigError(
                f"incremental_col={column!r} has type {kind}, expected a number, a day, a time or "
                "text that grows with each new row"
            )
        largest = watched_job(self._spark, lambda: _largest(self._copied(paths), column), LOOK)
        return None if largest is None else Mark(column, largest)

    def _copied(self, paths: Sequence[str]) -> DataFrame:
        return self._spark.read.parquet(*map(literal_path, paths))


def _largest(df: DataFrame, column: str) -> str | None:
    [row] = df.select(F.max(_ordered(df, column)).cast("string")).collect()
    largest: str | None = row[0]
    return largest


def _is_repeatable(df: DataFrame) -> bool:
    """Returns whether the rows have the same values each time, unlike with a random column."""
    try:
        return bool(df._jdf.queryExecution().analyzed().deterministic())
    except Exception:  # Spark Connect has no plan to look at
        return True


def _state(df: DataFrame, columns: Sequence[str]) -> TableState:
    """Returns the number of rows and their hashes, each row's whatever their order."""
    hashed: list[Column] = []
    for name in columns:
        column = F.col(quoted(name))
        if "map<" in df.schema[name].dataType.simpleString():
            column = F.to_json(F.struct(column))  # a map has no hash in Spark
        # A null leaves a hash as it is: (null, x) and (x, null) would be equal.
        hashed += [column.isNull(), column]
    one = F.xxhash64(*hashed)
    try:
        [row] = (
            df.select(one.alias("h"))
            .selectExpr("count(*)", "sum(cast(h as decimal(38, 0)))", "bit_xor(h)")
            .collect()
        )
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"the input could not be read: {explain(error)}") from error
    return TableState(int(row[0]), (str(row[1] or 0), str(row[2] or 0)))


def _is_beyond(df: DataFrame, mark: Mark) -> Column:
    """Returns whether a row is beyond a mark; never null: a row without a value is not."""
    ordered = _ordered(df, mark.column)
    kind = df.select(ordered).schema[0].dataType
    return F.coalesce(ordered > F.lit(mark.value).cast(kind), F.lit(False))


def _ordered(df: DataFrame, name: str) -> Column:
    """Returns a column in a form whose text is exact whatever the session's time zone."""
    column = F.col(quoted(name))
    is_instant = df.schema[name].dataType.simpleString() == "timestamp"
    return F.unix_micros(column) if is_instant else column


def _without_void(field: StructField) -> Column:
    """Returns a column; one of nothing but nulls as strings, for Parquet has no such type."""
    column = F.col(quoted(field.name))
    return column.cast("string").alias(field.name) if field.dataType == NullType() else column
