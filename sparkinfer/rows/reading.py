"""Reads the rows of a chunk as Arrow, with the column types of the run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.disk_errors import is_passing
from sparkinfer.exceptions import JobError
from sparkinfer.files.conform import conform
from sparkinfer.files.partitions import partition_values
from sparkinfer.files.schema import match_names
from sparkinfer.logs import get_logger
from sparkinfer.rows.kept_file import OpenFile, kept_file
from sparkinfer.storage import join

logger = get_logger(__name__)

READ_ROWS, READ_BYTES = 4096, 16 << 20
"""Maximum of a batch; a larger row is a batch of its own."""

PAUSES_S = (0.5, 2.0, 8.0, 30.0, 30.0, 30.0)
"""Before reading again what a store did not give."""

COPIES = "_copies/"
"""Prefix of the names of files that are read from a copy. No input file has such a name, since
names that begin with `_` are not data."""

GATHERED = f"{COPIES}gathered-"
"""Prefix of the names of copies in which equal inputs stand together; row groups end between
different ones, and no work is shared out within them."""

ROW_ID = pa.field("row_id", pa.string(), metadata={b"sparkinfer": b"made while it is read"})
"""A column of the number of a row's chunk and the row's place there, as `00000003-00000017`."""


@dataclass(frozen=True)
class Piece:
    """Rows of one file, in consecutive row groups.

    Attributes:
        path: name of the file; see `InputFolders`.
        first: index of the first row group.
        count: number of row groups.
        rows: rows of the piece.
        before: rows of these row groups that come before the piece.
        after: rows of these row groups that come after the piece.
        chunk: number of the chunk that it is of.
        place: of its first row in the chunk.
    """

    path: str
    first: int
    count: int
    rows: int
    before: int = 0
    after: int = 0
    chunk: int = field(default=0, compare=False, repr=False)
    place: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        groups = f"row groups {self.first} to {self.first + self.count - 1}"
        if not self.before and not self.after:
            return groups
        return f"rows {self.before} to {self.before + self.rows - 1} of {groups}"

    @property
    def is_gathered(self) -> bool:
        """Whether equal inputs stand together in it; see `GATHERED`."""
        return self.path.startswith(GATHERED)

    def cut(self, max_rows: int) -> list[Piece]:
        """Returns the piece in parts of even size with at most `max_rows` rows each."""
        count = -(-self.rows // max_rows)
        ends = [self.rows * number // count for number in range(count + 1)]
        return [
            replace(
                self,
                rows=end - start,
                before=self.before + start,
                after=self.after + self.rows - end,
                place=self.place + start,
            )
            for start, end in itertools.pairwise(ends)
        ]

    def first_rows(self, rows: int) -> Piece:
        """Returns the first rows of the piece alone."""
        return replace(self, rows=rows, after=self.after + self.rows - rows)

    def beyond(self, rows: int) -> Piece:
        """Returns the piece without its first rows."""
        return replace(
            self, rows=self.rows - rows, before=self.before + rows, place=self.place + rows
        )


def rows_between(pieces: Iterable[Piece], first: int, end: int) -> list[Piece]:
    """Returns the pieces, or parts of them, of the rows from `first` to before `end`.

    Of gathered pieces those whose first row is one of them, whole.

    Args:
        pieces: in order; rows are counted over all of them, from 0.
        first: number of the first row.
        end: number of the row after the last.
    """
    found, start = [], 0
    for piece in pieces:
        here, there = max(first - start, 0), min(end - start, piece.rows)
        if piece.is_gathered:
            found += [piece] if first <= start < end else []
        elif here < there:
            found.append(piece.beyond(here).first_rows(there - here))
        start += piece.rows
    return found


def share_out(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """Returns a chunk's rows in about equal shares; one without any if there are none."""
    rows = sum(piece.rows for piece in pieces)
    ends = [rows * number // count for number in range(count + 1)]
    found = [rows_between(pieces, first, end) for first, end in itertools.pairwise(ends)]
    return [share for share in found if share] or [[]]


@dataclass(frozen=True)
class InputFolders:
    """Where the files to read are.

    Attributes:
        root: the folder of the input's files; file names are relative to it.
        copies: the folder of copies that are read in place of files; see `COPIES`.
    """

    root: str
    copies: str = ""

    def find(self, name: str) -> str:
        """Returns the path of a file."""
        if name.startswith(COPIES):
            return join(self.copies, name.removeprefix(COPIES))
        return join(self.root, name)


@dataclass(frozen=True)
class ChunkReader:
    """Reads pieces of the input's files; small, since it is sent with every task.

    Attributes:
        folders: where the files are; the `key=value` parts of their names are columns.
        schema: the columns to read, with the types to give them. One that a file lacks is null, as
            in Spark.
    """

    folders: InputFolders
    schema: pa.Schema

    def read(self, pieces: Iterable[Piece]) -> Iterator[pa.RecordBatch]:
        """Yields the rows of all pieces, in order, in batches bounded in rows and bytes.

        Raises:
            JobError: a file is damaged, gone, or no longer holds the same number of rows.
        """
        for piece in pieces:
            path = self.folders.find(piece.path)
            rows = 0
            try:
                for batch in self._read_on(path, piece):
                    rows += batch.num_rows
                    yield batch
            except (pa.ArrowException, OSError) as error:
                reason = str(error).strip().split("\n", 1)[0]
                raise JobError(
                    f"input file {path!r} cannot be read in {piece} ({type(error).__name__}: "
                    f"{reason}); repair it and run again: what is done is kept"
                ) from error
            if rows != piece.rows:
                raise JobError(
                    f"input file {path!r} holds {rows} rows in {piece}, but held {piece.rows} when "
                    "the run began; restore it, or give --overwrite to score everything again"
                )

    def _read_on(self, path: str, piece: Piece) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a piece; where a store hesitates, goes on after the last one."""
        read, pauses = 0, iter(PAUSES_S)
        while True:
            try:
                for batch in self._read_piece(path, piece.beyond(read)):
                    read += batch.num_rows
                    yield batch
                return
            except OSError as error:
                pause_s = next(pauses, None)
                # Arrow reports damage by an error without a number.
                if pause_s is None or error.errno is None or not is_passing(error):
                    raise
                logger.warning("%s: reading again in %g s: %s", path, pause_s, error)
                time.sleep(pause_s)

    def _read_piece(self, path: str, piece: Piece) -> Iterator[pa.RecordBatch]:
        folders = self._folder_values(piece.path)
        in_part = bool(piece.before or piece.after)
        with kept_file(path, _begin, in_part) as opened:
            _refuse_other_rows(opened.file, path, piece)
            found = match_names(self.schema.names, opened.file.schema_arrow.names)
            read = 0
            for batch in _rows_of(opened, piece, list(found.values())):
                columns = [
                    _row_ids(piece, read, batch.num_rows)
                    if is_made(field) and field.name not in found
                    else self._column(field, batch, found.get(field.name), folders)
                    for field in self.schema
                ]
                read += batch.num_rows
                yield from halved(
                    pa.RecordBatch.from_arrays(columns, schema=self.schema), READ_BYTES
                )

    def _column(
        self,
        field: pa.Field,
        batch: pa.RecordBatch,
        name: str | None,
        folders: dict[str, str | None],
    ) -> pa.Array:
        if field.name in folders:
            value = pa.scalar(folders[field.name], pa.string())
            return _conform(pa.repeat(value, batch.num_rows), field)
        if name is None:
            return pa.nulls(batch.num_rows, field.type)
        return _conform(batch.column(batch.schema.get_field_index(name)), field)

    def _folder_values(self, name: str) -> dict[str, str | None]:
        """Returns the values of the columns that are in a file's name and not in the file."""
        values = partition_values(name)
        names = match_names(self.schema.names, list(values))
        return {column: values[key] for column, key in names.items()}


def is_made(field: pa.Field) -> bool:
    """Returns whether a column is that of the ids that rows get; an output has it, no input."""
    return bool(field.equals(ROW_ID, check_metadata=True))


def _row_ids(piece: Piece, first: int, rows: int) -> pa.Array:
    places = range(piece.place + first, piece.place + first + rows)
    return pa.array([f"{piece.chunk:08d}-{place:08d}" for place in places], pa.string())


def read_batches(
    file: pq.ParquetFile,
    groups: Iterable[int],
    names: Sequence[str],
    max_rows: int,
    max_bytes: int,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of row groups, one group after the other, in batches of bounded size.

    The bound in bytes holds for rows of average size; see `halved`.

    Args:
        file: that holds them.
        groups: indexes of the row groups.
        names: of the columns, as spelled in the file.
        max_rows: maximum rows of a batch.
        max_bytes: maximum bytes of a batch.
    """
    indices = column_places(file, names)
    # One row group at a time: reading ahead would hold a whole chunk in memory.
    for group in groups:
        metadata = file.metadata.row_group(group)
        size = max(1, encoded_bytes(metadata, indices))
        rows = max(1, min(max_rows, metadata.num_rows * max_bytes // size))
        yield from file.iter_batches(rows, [group], list(names))


def column_places(file: pq.ParquetFile, names: Iterable[str]) -> list[int]:
    """Returns the indexes of the Parquet columns that store some columns; nested ones have many.

    Empty for a file without row groups. The schema of `file.metadata` is not used: it and the
    metadata refer to each other, and both would stay in memory until garbage collection.
    """
    wanted = set(names)
    metadata = file.metadata
    groups = [metadata.row_group(0)] if metadata.num_row_groups else []
    paths = [group.column(i).path_in_schema for group in groups for i in range(group.num_columns)]
    return [
        index
        for index, path in enumerate(paths)
        if path in wanted or any(path.startswith(f"{name}.") for name in wanted)
    ]


def encoded_bytes(row_group: pq.RowGroupMetaData, indices: Iterable[int]) -> int:
    """Returns the bytes of some columns of a row group, as Parquet encodes them, uncompressed."""
    return sum(row_group.column(index).total_uncompressed_size for index in indices)


def halved(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yields a batch, halved repeatedly until each part has at most `max_bytes` or is one row.

    What all rows share, such as a dictionary, does not shrink this way; such a batch stays whole.
    """
    half = batch.num_rows // 2
    if batch.nbytes > max_bytes and half:
        halves = [batch.slice(0, half), batch.slice(half)]
        if sum(part.nbytes for part in halves) < 1.5 * batch.nbytes:
            for part in halves:
                yield from halved(part, max_bytes)
            return
    yield batch


def _begin(file: pq.ParquetFile, group: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    return read_batches(file, [group], names, READ_ROWS, READ_BYTES)


def _rows_of(opened: OpenFile, piece: Piece, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a piece; no row group without any of them is decoded."""
    before, left = piece.before, piece.rows
    for group in range(piece.first, piece.first + piece.count):
        rows = opened.file.metadata.row_group(group).num_rows
        if left and before < rows:
            end = min(before + left, rows)
            yield from opened.rows(group, names, before, end)
            left -= end - before
        before = max(before - rows, 0)


def _refuse_other_rows(file: pq.ParquetFile, path: str, piece: Piece) -> None:
    """Raises JobError unless the row groups of a piece have as many rows as before."""
    metadata = file.metadata
    groups = range(piece.first, min(piece.first + piece.count, metadata.num_row_groups))
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    expected = piece.before + piece.rows + piece.after
    if rows != expected:
        raise JobError(
            f"input file {path!r} holds {rows} rows in row groups {piece.first} to "
            f"{piece.first + piece.count - 1}, but held {expected} when the run began; restore "
            "it, or give --overwrite to score everything again"
        )


def _conform(column: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return conform(column, field.type)
    except pa.ArrowException as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise JobError(
            f"column {field.name!r} cannot be read as {field.type} ({reason}); leave it out with "
            "--carry-cols, or register a table and give its name"
        ) from error
