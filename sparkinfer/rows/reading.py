"""Reads the rows of a chunk as Arrow, with the types that the run has for its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkinfer.exceptions import JobError
from sparkinfer.storage import file_system, join

READ_ROWS = 4096
"""Rows in a batch."""

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Piece:
    """Row groups of one file, one after the other.

    Attributes:
        path: of the file, below the input's folder.
        first: index of the first row group.
        count: number of row groups.
        rows: rows in them.
    """

    path: str
    first: int
    count: int
    rows: int


@dataclass(frozen=True)
class ChunkReader:
    """Reads pieces of the input's files; small, for it travels with every task.

    Attributes:
        root: the folder of the input's files; the parts `key=value` of paths below it are columns.
        schema: the columns that are read, with the types that they get. One that a file does not
            have is null, as it is for Spark.
    """

    root: str
    schema: pa.Schema

    def read(self, pieces: Iterable[Piece]) -> Iterator[pa.RecordBatch]:
        """Yields the rows of all pieces, in order.

        Raises:
            JobError: a file is damaged, gone, or does not hold the rows that it held.
        """
        for piece in pieces:
            path = join(self.root, piece.path)
            rows = 0
            try:
                for batch in self._read_piece(path, piece):
                    rows += batch.num_rows
                    yield batch
            except (pa.ArrowException, OSError) as error:
                reason = str(error).strip().split("\n", 1)[0]
                raise JobError(
                    f"input file {path!r} cannot be read in row groups {piece.first} to "
                    f"{piece.first + piece.count - 1} ({type(error).__name__}: {reason}); mend it "
                    "and run again: what is done is kept"
                ) from error
            if rows != piece.rows:
                raise JobError(
                    f"input file {path!r} holds {rows} rows in row groups {piece.first} to "
                    f"{piece.first + piece.count - 1}, and held {piece.rows} when the run began; "
                    "restore it, or give --overwrite to score everything again"
                )

    def _read_piece(self, path: str, piece: Piece) -> Iterator[pa.RecordBatch]:
        # One row group after the other: read ahead, a chunk would lie in memory whole.
        fs, name = file_system(path)
        folders = self._partition_values(piece.path)
        with fs.open(name, "rb") as handle:
            file = pq.ParquetFile(handle, coerce_int96_timestamp_unit="us")
            found = _match(self.schema.names, file.schema_arrow.names)
            for group in range(piece.first, piece.first + piece.count):
                for batch in file.iter_batches(READ_ROWS, [group], list(found.values())):
                    columns = [
                        self._column(field, batch, found.get(field.name), folders)
                        for field in self.schema
                    ]
                    yield pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _column(
        self,
        field: pa.Field,
        batch: pa.RecordBatch,
        name: str | None,
        folders: dict[str, str | None],
    ) -> pa.Array:
        if field.name in folders:
            value = pa.scalar(folders[field.name], pa.string())
            return _cast(pa.repeat(value, batch.num_rows), field)
        if name is None:
            return pa.nulls(batch.num_rows, field.type)
        column = batch.column(batch.schema.get_field_index(name))
        # Spark has microseconds; it cuts off what is finer, and so does a cast that may lose it.
        return _cast(column, field, safe=not pa.types.is_timestamp(field.type))

    def _partition_values(self, path: str) -> dict[str, str | None]:
        """Returns the values of the columns that stand in the path and not in the file."""
        pairs = [part.split("=", 1) for part in path.split("/")[:-1] if "=" in part]
        values = {unquote(key): unquote(value) for key, value in pairs}
        names = _match(self.schema.names, list(values))
        return {
            name: None if values[key] == NULL_PARTITION else values[key]
            for name, key in names.items()
        }


def _cast(column: pa.Array, field: pa.Field, safe: bool = True) -> pa.Array:
    try:
        return pc.cast(column, field.type, safe=safe)
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise JobError(
            f"column {field.name!r} cannot be read as {field.type} ({reason}); leave it out with "
            "--carry-cols, or register a table and give its name"
        ) from error


def cut_rows(
    batches: Iterable[pa.RecordBatch], part: tuple[int, int] | None
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a part (first row, number of rows), or all of them."""
    if part is None:
        yield from batches
        return
    first, last = part[0], part[0] + part[1]
    start = 0
    for batch in batches:
        cut = batch.slice(max(0, first - start), max(0, last - max(start, first)))
        if cut.num_rows:
            yield cut
        start += batch.num_rows
        if start >= last:
            return


def _match(wanted: Iterable[str], present: list[str]) -> dict[str, str]:
    """Returns for the wanted names the present ones; as for Spark, case does not count."""
    lowered = {name.lower(): name for name in reversed(present)}
    exact = set(present)
    return {
        name: name if name in exact else lowered[name.lower()]
        for name in wanted
        if name in exact or name.lower() in lowered
    }
