"""An input that Spark reads: files, a table, a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError
from sparkinfer.plan.inputs import input_format
from sparkinfer.plan.ports import InputTable
from sparkinfer.rows.copying import FileCopier
from sparkinfer.spark.copies import copy_by_tasks
from sparkinfer.spark.errors import explain
from sparkinfer.spark.tables import arrow_field, read_files, read_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

COPIED_GROUP_BYTES = 8 << 20
"""Size of a row group in a copied input: rows are read from their row group's start."""


class SparkInput:
    """The configured input, or a DataFrame in its place; see `InputSource`.

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
        if self._df is None:
            self._kind = input_format(self._config)
            self._df = read_table(self._spark, self._kind, str(self._config.input))
        fields, foreign = [], {}
        for column in self._df.schema:
            try:
                fields.append(arrow_field(column))
            except Exception:  # Arrow has no such type; the class of pyspark's error varies
                foreign[column.name] = column.dataType.simpleString()
        is_files = self._kind in ("parquet", "csv", "json")
        path = str(self._config.input) if is_files else None
        return InputTable(tuple(self._df.columns), self._kind, path, pa.schema(fields), foreign)

    def copy(self, folder: str, rows_per_file: int, paths: Sequence[str]) -> None:
        """Copies the input, or some of its files, to a folder of Parquet files."""
        if self._df is None:
            self.open()
        assert self._df is not None  # set by open
        df = self._df
        if paths:
            df = read_files(self._spark, self._kind, df.schema, paths, str(self._config.input))
        try:
            writer = df.write.option("maxRecordsPerFile", rows_per_file)
            writer.option("parquet.block.size", COPIED_GROUP_BYTES).parquet(folder)
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"copying the input to {folder!r} failed: {explain(error)}") from error

    def copy_files(self, copier: FileCopier, names: Sequence[str]) -> dict[str, list[str]]:
        """Copies Parquet files, each in a Spark task; see `InputSource`."""
        return copy_by_tasks(self._spark, copier, names)
