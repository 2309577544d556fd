"""How Spark reads the input, and how to quote a column's name."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sparkinfer.exceptions import InputError
from sparkinfer.spark.errors import explain

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructField, StructType

CSV_OPTIONS = {"header": "true", "multiLine": "true", "escape": '"', "nullValue": "\x00"}
"""RFC 4180: a header line, line breaks within quotes, doubled quotes. All columns are strings.

An empty field is null and "" is an empty string: Spark distinguishes them only if its null value is
not the empty string.
"""


def read_table(spark: SparkSession, kind: str, path: str) -> DataFrame:
    """Returns the input as a lazy DataFrame.

    Args:
        spark: the session.
        kind: `table`, `parquet`, `csv` or `json`.
        path: of the files, or the table's name.

    Raises:
        InputError: Spark cannot read it.
    """
    try:
        if kind == "table":
            return spark.read.table(path)
        reader = spark.read.options(**CSV_OPTIONS) if kind == "csv" else spark.read
        return reader.format(kind).load(path)
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise InputError(f"input {path!r} cannot be read as {kind}: {explain(error)}") from error


def read_files(
    spark: SparkSession, kind: str, schema: StructType, paths: Sequence[str], root: str
) -> DataFrame:
    """Returns some files of an input as a lazy DataFrame.

    Args:
        spark: the session.
        kind: `csv` or `json`.
        schema: of the whole input, including columns that are in the paths.
        paths: of the files.
        root: the input.
    """
    reader = spark.read.options(**CSV_OPTIONS) if kind == "csv" else spark.read
    if list(paths) != [root]:
        reader = reader.option("basePath", root)
    return reader.schema(schema).format(kind).load([literal_path(path) for path in paths])


def literal_path(path: str) -> str:
    """Returns a path escaped so that Spark's reader does not take it for a pattern."""
    return re.sub(r"([\\\[\]{}*?])", r"\\\1", path)


def quoted(name: str) -> str:
    """Returns a column's name quoted so that Spark takes dots and backticks literally."""
    return "`" + name.replace("`", "``") + "`"


SPARK_TYPE = b"sparkinfer.spark_type"
"""Under it, an Arrow field's metadata holds the Spark type that the column has, as JSON."""


def spark_schema(schema: pa.Schema) -> StructType:
    """Returns columns as Spark has them: by the type that `arrow_field` noted, else by Arrow's.

    Not every type survives the way to Arrow and back: a vector of Spark ML is a struct there, and
    Spark 3.5 takes a timestamp without a time zone for one with.
    """
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StructField, StructType

    fields = []
    for field in schema:
        known = (field.metadata or {}).get(SPARK_TYPE)
        if known is not None:
            fields.append(StructField.fromJson(json.loads(known)))
        else:
            fields += from_arrow_schema(pa.schema([field])).fields
    return StructType(fields)


def arrow_field(field: StructField) -> pa.Field:
    """Returns a Spark column's field in Arrow, which remembers its type; timestamps are in UTC.

    Raises:
        Exception: Arrow has no such type; the class of pyspark's error varies.
    """
    from pyspark.sql.pandas.types import to_arrow_type
    from pyspark.sql.types import StructField

    # Spark 4 has a parameter for the time zone that Spark 3.5 assumes.
    takes_timezone = "timezone" in inspect.signature(to_arrow_type).parameters
    options: dict[str, Any] = {"timezone": "UTC"} if takes_timezone else {}
    kind = to_arrow_type(field.dataType, **options)
    plain = StructField(field.name, field.dataType, field.nullable)
    return pa.field(field.name, kind, field.nullable, metadata={SPARK_TYPE: plain.json()})
