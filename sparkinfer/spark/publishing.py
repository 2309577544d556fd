"""Writes a finished output to a table of Spark's catalog."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from sparkinfer.exceptions import JobError, OutputError
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import in_job_thread, watched_job
from sparkinfer.spark.settings import PLAIN_TIMES, settings
from sparkinfer.spark.tables import parts_of, quoted, quoted_table, spark_schema
from sparkinfer.storage import literal_path

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

VIEWS = frozenset({"VIEW", "TEMPORARY"})
"""Types of what the catalog has that is no table."""


class CatalogTables:
    """The tables of a session; see `TableTarget`.

    Args:
        spark: the session.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    def columns(self, name: str) -> dict[str, str] | None:
        """Returns the types of a table's columns as Spark names them, None if there is no table.

        Raises:
            OutputError: it is a view, has no schema to be in, or cannot be inspected.
        """
        try:
            return in_job_thread(self._spark, lambda: self._columns(name))
        except OutputError:
            raise
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise OutputError(
                f"table {name!r} cannot be inspected ({explain(error)}); name another"
            ) from error

    def _columns(self, name: str) -> dict[str, str] | None:
        table, catalog = quoted_table(name), self._spark.catalog
        if not catalog.tableExists(table):
            schema = ".".join(parts_of(name)[:-1])
            if schema and not catalog.databaseExists(quoted_table(schema)):
                raise OutputError(
                    f"table {name!r}: there is no schema {schema!r}; make it, or name another"
                )
            return None
        if catalog.getTable(table).tableType in VIEWS:
            raise OutputError(
                f"table {name!r} is a view, into which nothing can be written; name a table"
            )
        return _types(self._spark.read.table(table).schema)

    def types_of(self, columns: pa.Schema) -> dict[str, str]:
        """Returns the types that an output's columns have in a table."""
        return _types(spark_schema(columns))

    def count(self, name: str) -> int:
        """Returns the rows of a table, 0 if there is none; see `TableTarget`."""
        table = quoted_table(name)

        def rows() -> int:
            if not self._spark.catalog.tableExists(table):
                return 0
            return self._spark.read.table(table).count()

        try:
            return watched_job(self._spark, rows, f"a count of table {name!r}")
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"table {name!r} cannot be counted: {explain(error)}") from error

    def write(
        self,
        name: str,
        paths: Sequence[str],
        columns: pa.Schema,
        mode: Literal["append", "overwrite"],
    ) -> None:
        """Writes files to a table; see `TableTarget`."""
        rows = self._spark.read.schema(spark_schema(columns)).parquet(*map(literal_path, paths))
        act = partial(self._put, rows, quoted_table(name), mode)
        try:
            with settings(self._spark, PLAIN_TIMES):
                watched_job(self._spark, act, f"the write to table {name!r}")
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(
                f"table {name!r} could not be written: {explain(error)}; the output's files are "
                "complete, and the same command writes them again"
            ) from error

    def _put(self, rows: DataFrame, table: str, mode: Literal["append", "overwrite"]) -> None:
        if mode == "append" and self._spark.catalog.tableExists(table):
            # `saveAsTable` takes no table of another format than the default, or with partitions.
            there = self._spark.read.table(table).columns
            rows.select(*map(quoted, there)).write.insertInto(table)
        else:
            rows.write.mode(mode).saveAsTable(table)


def _types(schema: StructType) -> dict[str, str]:
    return {field.name: field.dataType.simpleString() for field in schema}
