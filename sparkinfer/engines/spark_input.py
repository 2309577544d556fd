"""An input that Spark reads: a table, a view, a query, a DataFrame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pyspark.sql import functions as F
from pyspark.sql.types import NullType

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError
from sparkinfer.files.listing import InputFile
from sparkinfer.plan.inputs import spark_kind
from sparkinfer.plan.ports import InputTable
from sparkinfer.spark.errors import explain
from sparkinfer.spark.settings import PLAIN_TIMES, settings
from sparkinfer.spark.tables import arrow_schema, quoted, read_table

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructField

T = TypeVar("T")

COPIED_GROUP_BYTES = 8 << 20
"""Size of a row group in a copied input: rows are read from their row group's start."""


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
        self._kind = "DataFrame"

    def open(self) -> InputTable:
        """Returns what the input holds."""
        df = self._opened()
        schema, refused = arrow_schema(df.schema)
        return InputTable(tuple(df.columns), self._kind, schema, refused)

    def files(self) -> tuple[InputFile, ...]:
        """Returns none; see `InputSource`."""
        return ()

    def copy(self, folder: str, rows_per_file: int, columns: Sequence[str]) -> None:
        """Copies some columns of the input to a folder of Parquet files."""
        df = self._opened().select([quoted(name) for name in columns])
        try:
            with settings(self._spark, PLAIN_TIMES):
                writer = df.write.option("maxRecordsPerFile", rows_per_file)
                writer.option("parquet.block.size", COPIED_GROUP_BYTES).parquet(folder)
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"copying the input to {folder!r} failed: {explain(error)}") from error

    def on_each_file(self, act: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Not called: there are no files; see `InputSource`."""
        raise AssertionError("what Spark reads has no files")

    def _opened(self) -> DataFrame:
        if self._df is None:
            self._kind = spark_kind(self._config) or "table"
            self._df = read_table(self._spark, self._kind, str(self._config.input))
        return self._df.select(*map(_without_void, self._df.schema))


def _without_void(field: StructField) -> Column:
    """Returns a column; one of nothing but nulls as strings, for Parquet has no such type."""
    column = F.col(quoted(field.name))
    return column.cast("string").alias(field.name) if field.dataType == NullType() else column
