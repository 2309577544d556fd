"""Parquet files: their columns, and what their footers say of whole numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.exceptions import InputError
from sparkinfer.storage import file_system

BUFFER_BYTES = 4 << 20
"""Read ahead per column. Without a bound, Arrow reads the whole columns of a row group; a small
one would mean many requests for few bytes on an object store."""


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file so that its row groups can be read in parts."""
    fs, name = file_system(path)
    with fs.open(name, "rb") as handle:
        yield pq.ParquetFile(
            handle,
            coerce_int96_timestamp_unit="us",
            buffer_size=BUFFER_BYTES,
            pre_buffer=False,  # the default of later versions, which reads row groups whole
        )


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Raises InputError in place of what reading a damaged file raises."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"input file {path!r} is not readable as Parquet "
            f"({str(error).strip().splitlines()[0]}); repair or remove it"
        ) from None


def parquet_schema(path: str) -> pa.Schema:
    """Returns the columns of a file, with its own types; as in Spark, INT96 times are instants.

    Raises:
        InputError: it is not Parquet, or is damaged.
    """
    with readable(path), open_parquet(path) as file:
        stored = [file.schema.column(index) for index in range(len(file.schema))]
        instants = {one.path.split(".", 1)[0] for one in stored if one.physical_type == "INT96"}
        return pa.schema(
            [
                pa.field(field.name, _in_utc(field.type) if field.name in instants else field.type)
                for field in file.schema_arrow
            ]
        )


def whole_number_bounds(path: str, name: str) -> tuple[int, int] | None:
    """Returns the least and the largest value of a column by the footer, None if it lacks them."""
    with readable(path), open_parquet(path) as file:
        metadata = file.metadata
        bounds = []
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = map(group.column, range(group.num_columns))
            [column] = (one for one in columns if one.path_in_schema.lower() == name.lower())
            known = column.statistics
            if known is not None and known.null_count == group.num_rows:
                continue
            if known is None or not known.has_min_max:
                return None
            bounds += [int(known.min), int(known.max)]
    return (min(bounds), max(bounds)) if bounds else (0, 0)


def _in_utc(kind: pa.DataType) -> pa.DataType:
    """Returns the type with UTC as the time zone of its timestamps."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp(kind.unit, "UTC")
    if pa.types.is_struct(kind):
        fields = (kind.field(index) for index in range(kind.num_fields))
        return pa.struct([pa.field(field.name, _in_utc(field.type)) for field in fields])
    if pa.types.is_map(kind):
        return pa.map_(_in_utc(kind.key_type), _in_utc(kind.item_type))
    return pa.list_(_in_utc(kind.value_type)) if pa.types.is_list(kind) else kind
