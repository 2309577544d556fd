"""How Spark reads the input, and how to quote a column's name."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sparkinfer.exceptions import InputError
from sparkinfer.files.conform import conform
from sparkinfer.rows.columns import Columns
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.errors import explain

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructField, StructType

_UNQUOTED = re.compile(r"[\w-]+")
_PARTS = re.compile(r"`(?:[^`]|``)+`|[^.`]+")


def read_table(spark: SparkSession, kind: str, name: str, version: int | None = None) -> DataFrame:
    """Returns a table, a view or a query as a lazy DataFrame.

    Args:
        spark: the session.
        kind: `table` or `query`.
        name: of the table or view, or the query. A part of a name that holds other characters than
            letters, digits, `_` and `-` is in backticks, as in Spark.

        version: of a table that keeps some; None: the table as it is.

    Raises:
        InputError: Spark cannot read it.
    """
    try:
        if kind == "query":
            return spark.sql(name)
        if version is not None:  # as an option, tables without versions would pass over it
            return spark.sql(f"SELECT * FROM {quoted_table(name)} VERSION AS OF {version}")
        return spark.read.table(quoted_table(name))
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise InputError(f"input {name!r} cannot be read as a {kind}: {explain(error)}") from error


def quoted_table(name: str) -> str:
    """Returns a table's name with backticks around each part that is not in them already."""
    return ".".join(map(_quoted_part, parts_of(name)))


def parts_of(name: str) -> list[str]:
    """Returns the parts of a table's name: catalog, schema and table, as many as it has."""
    return _PARTS.findall(name)


def _quoted_part(part: str) -> str:
    return quoted(part) if _UNQUOTED.fullmatch(part) else part


def quoted(name: str) -> str:
    """Returns a column's name quoted so that Spark takes dots and backticks literally."""
    return "`" + name.replace("`", "``") + "`"


def with_plain_names(df: DataFrame) -> DataFrame:
    """Returns a DataFrame whose columns are named `c0`, `c1`, ... in their order.

    `mapInArrow` does not find a column whose name holds a backtick or a dot.
    """
    return df.toDF(*(f"c{index}" for index in range(len(df.columns))))


def in_types(batch: pa.RecordBatch, columns: pa.Schema) -> pa.RecordBatch:
    """Returns rows that Spark gave a task, with their columns' own names and types."""
    pairs = zip(batch.columns, columns, strict=True)
    arrays = [conform(column, field.type) for column, field in pairs]
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def count_functions(df: DataFrame) -> int:
    """Returns how many functions over Arrow batches a DataFrame is made by."""
    if is_classic(df.sparkSession):
        plan = df._jdf.queryExecution().analyzed().toString()
    else:
        explain_string: Any = vars(type(df))["_explain_string"]
        plan = explain_string(df, extended=True)
    return str(plan).count("MapInArrow")


SPARK_TYPE = b"sparkinfer.spark_type"
"""Under it, an Arrow field's metadata holds the Spark type that the column has, as JSON."""


def spark_schema(schema: pa.Schema) -> StructType:
    """Returns columns as Spark has them: by the type that `arrow_field` noted, else by Arrow's.

    Not every type survives the way to Arrow and back: a vector of Spark ML is a struct there.
    """
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StructField, StructType

    fields = []
    for field in schema:
        known = (field.metadata or {}).get(SPARK_TYPE)
        if known is not None:
            fields.append(StructField.fromJson(json.loads(known)))
        else:
            fields += from_arrow_schema(pa.schema([field]), prefer_timestamp_ntz=True).fields
    return StructType(fields)


_OF_FILE = b"org.apache.spark.sql.parquet.row.metadata"
"""Under it, Spark's Parquet files hold their schema, with the metadata of its columns."""


def with_spark_schema(columns: Columns) -> Columns:
    """Returns the columns with Spark's notation of the schema among a file's metadata."""
    from pyspark.sql.types import StructType

    scored = spark_schema(columns.scored)
    for field, of_arrow in zip(scored.fields, columns.scored, strict=True):
        metadata = of_arrow.metadata or {}
        field.metadata = {key.decode(): value.decode() for key, value in metadata.items()}
    schema = StructType([*spark_schema(columns.carried).fields, *scored.fields])
    return replace(columns, notes={_OF_FILE: schema.json().encode("utf-8")})


def arrow_schema(columns: StructType) -> tuple[pa.Schema, dict[str, str]]:
    """Returns the columns that Arrow has a type for, and why each other one is not carried."""
    from pyspark.sql.types import StringType, StructField

    fields, refused = [], {}
    lowered = [name.lower() for name in columns.names]
    for column in columns:
        if lowered.count(column.name.lower()) > 1:
            refused[column.name] = "appears twice: it is not clear which of the two is meant"
            continue
        kind = column.dataType.simpleString()
        if kind == "void":  # copied as strings
            column = StructField(column.name, StringType())
        elif _holds_void(column.dataType):
            refused[column.name] = f"has type {kind}, and a Parquet file of Spark holds no void"
            continue
        try:
            fields.append(arrow_field(column))
        except Exception:  # Arrow has no such type; the class of pyspark's error varies
            refused[column.name] = f"has type {kind}, which Arrow does not have"
    return pa.schema(fields), refused


def _holds_void(kind: DataType) -> bool:
    """Returns whether a type is, or has nested in it, that of nothing but nulls."""
    nested = [vars(kind).get(part) for part in ("elementType", "keyType", "valueType")]
    nested += [field.dataType for field in getattr(kind, "fields", ())]
    return kind.simpleString() == "void" or any(map(_holds_void, filter(None, nested)))


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
