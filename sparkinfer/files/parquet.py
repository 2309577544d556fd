"""Parquet files: their columns, and what their footers say of whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkinfer.exceptions import InputError
from sparkinfer.storage import file_system

T = TypeVar("T")

FOOTERS_AT_ONCE = 16
"""Files whose footers are read at the same time: on an object store each takes a round trip."""

BUFFER_BYTES = 4 << 20
"""Read ahead per column. Without a bound, Arrow reads the whole columns of a row group; a small
one would mean many requests for few bytes on an object store."""

MOST_TEXT_LOOKED_AT = 64 << 20
"""Bytes of a text column that are read before the run to know the longest text."""


def at_once(read: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """Returns what a function that reads little of a file gives for each, several in parallel."""
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return list(pool.map(read, paths))


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
        place = _place(file, name)
        if place is None:
            return None
        bounds = []
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            known = group.column(place).statistics
            if not group.num_rows or (known and known.null_count == group.num_rows):
                continue
            if known is None or not known.has_min_max:
                return None
            bounds += [int(known.min), int(known.max)]
    return (min(bounds), max(bounds)) if bounds else (0, 0)


@dataclass(frozen=True)
class TextSizes:
    """How much text a column has.

    Attributes:
        longest: an upper bound of the UTF-8 bytes of the longest value, None if unknown.
        total: about the bytes of all of them, None if unknown.
    """

    longest: int | None = None
    total: int | None = None


def text_sizes(paths: Sequence[str], name: str) -> TextSizes:
    """Returns how much text a column has in some files; nothing if it is not in their footers.

    The longest text is bounded by what Parquet keeps of the largest row group where there is so
    much text that looking at each would take more than an instant, or where some cannot be read.
    """
    sizes = [size for found in at_once(partial(_group_sizes, name=name), paths) for size in found]
    if not sizes:
        return TextSizes()
    longest, total = max(sizes), sum(sizes)
    if total <= MOST_TEXT_LOOKED_AT:
        # A row group that is damaged is named when it is scored; others may be done by then.
        with suppress(InputError):
            longest = max(at_once(partial(_longest_in, name=name), paths))
    return TextSizes(longest, total)


def _group_sizes(path: str, name: str) -> list[int]:
    """Returns the bytes of a column in each row group, as Parquet encodes them, uncompressed."""
    with readable(path), open_parquet(path) as file:
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        return [
            column.total_uncompressed_size
            for group in groups
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema.lower() == name.lower()
        ]


def _longest_in(path: str, name: str) -> int:
    with readable(path), open_parquet(path) as file:
        names = [one for one in file.schema_arrow.names if one.lower() == name.lower()]
        longest = [0]
        for batch in file.iter_batches(columns=names) if names else ():
            column = batch.column(batch.schema.get_field_index(names[0]))
            if pa.types.is_dictionary(column.type):
                column = column.dictionary
            if not pa.types.is_null(column.type):
                longest.append(pc.max(pc.binary_length(column)).as_py() or 0)
        return max(longest)


def _place(file: pq.ParquetFile, name: str) -> int | None:
    """Returns the index of a column that is not nested, None if there is none.

    A field `b` of a struct `a` has the same path as a column `a.b`.
    """
    stored = (file.schema.column(index) for index in range(len(file.schema)))
    return next(
        (
            index
            for index, one in enumerate(stored)
            if one.name.lower() == name.lower() == one.path.lower()
        ),
        None,
    )


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
