"""Joins scored columns with the carried columns of their rows and writes them as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkinfer.metrics.several import Measures
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.tally import TallyTaker, WrittenFile
from sparkinfer.storage import file_system, join
from sparkinfer.workers.behind import Behind
from sparkinfer.workers.statistics import ScoringStatistics

T = TypeVar("T")

SAMPLED_ROWS = 256
"""Of a file, to tell whether the values of a column repeat, and whether they get smaller."""

WORTH_COMPRESSING = 0.9
"""Most that is left of a column that is compressed, as a share of it."""

CODEC = "snappy"

_FLOATS = ("FLOAT", "DOUBLE")

PLAIN_DAYS = {b"org.apache.spark.version": b"3.5.0"}
"""By this note Spark knows that days before 1582 in a file are as they should be. It refuses to
read them in files without it."""


class CarriedRows:
    """Rows that wait for their scores; both come in the same order.

    Args:
        columns: of the run.

    Attributes:
        read: rows so far.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._waiting: deque[pa.Table] = deque()
        self.read = 0

    def put(self, rows: pa.RecordBatch) -> None:
        """Takes the next rows, with at least the carried columns."""
        self.read += rows.num_rows
        carried = [rows.column(name) for name in self._columns.carried.names]
        if carried:
            self._waiting.append(pa.Table.from_arrays(carried, schema=self._columns.carried))

    def complete(self, scored: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """Yields the carried columns followed by the scored ones, as the latter come."""
        for batch in scored:
            carried = self._take(batch.num_rows) if self._columns.carried.names else ()
            yield pa.Table.from_arrays([*carried, *batch.columns], schema=self._columns.output)

    def _take(self, rows: int) -> list[pa.ChunkedArray]:
        """Removes the first waiting rows and returns their columns."""
        taken = []
        while rows > 0:
            table = self._waiting.popleft()
            if table.num_rows > rows:
                self._waiting.appendleft(table.slice(rows))
                table = table.slice(0, rows)
            taken.append(table)
            rows -= table.num_rows
        columns = pa.concat_tables(taken) if taken else self._columns.carried.empty_table()
        return list(columns.columns)


class ScoredWriter:
    """Writes scored rows to Parquet files in one folder.

    Args:
        folder: where to write them; it exists, or need not be created.
        columns: of the run.
        measure: which metrics are computed from the rows.
    """

    def __init__(self, folder: str, columns: Columns, measure: Measures) -> None:
        self._folder = folder
        self._columns = columns
        self._measure = measure

    def write(
        self,
        name: str,
        pairs: Iterable[tuple[T, pa.RecordBatch]],
        process: Callable[[Iterable[T]], Iterable[pa.RecordBatch]],
        statistics: ScoringStatistics,
    ) -> WrittenFile:
        """Scores rows and writes them to a file as they come, in a thread.

        Args:
            name: of the file.
            pairs: what is scored of some rows, and their carried columns.
            process: scores them.
            statistics: receives how long writing takes, and how long rows wait for it.
        """
        carried = CarriedRows(self._columns)

        def fed() -> Iterator[T]:
            for rows, beside in pairs:
                carried.put(beside)
                yield rows

        tables = carried.complete(process(fed()))
        return self._write(name, tables, lambda: carried.read, statistics)

    def write_tables(self, name: str, tables: Iterable[pa.Table]) -> WrittenFile:
        """Writes rows with all columns of the output to a file as they come."""
        return self._write(name, tables, lambda: None, ScoringStatistics())

    def _write(
        self,
        name: str,
        tables: Iterable[pa.Table],
        read: Callable[[], int | None],
        statistics: ScoringStatistics,
    ) -> WrittenFile:
        schema = self._columns.output
        fs, path = file_system(join(self._folder, name))
        taker = TallyTaker(self._measure, self._columns.scored)
        noted = schema.with_metadata({**PLAIN_DAYS, **(schema.metadata or {})})
        coming = (table.cast(schema) for table in tables)
        table = next(coming, None)
        layout = {} if table is None else _layout(table)
        with (
            fs.open(path, "wb") as handle,
            pq.ParquetWriter(handle, noted, **layout) as writer,
        ):

            def write(rows: pa.Table) -> None:
                started = time.perf_counter()
                writer.write_table(rows)
                taker.add(rows)
                statistics.write_s += time.perf_counter() - started

            with Behind(write) as behind:
                while table is not None:
                    started = time.perf_counter()
                    behind.put(table)
                    statistics.write_wait_s += time.perf_counter() - started
                    table = next(coming, None)
        return WrittenFile(name, taker.tally(read()))


def _layout(rows: pa.Table) -> dict[str, Any]:
    """Returns how a table's columns are best stored, by its first rows, as a writer takes it.

    A dictionary for those whose values repeat, compression for those with one and those that get
    smaller by it: for others both cost time, and save no room.
    """
    first = rows.slice(0, SAMPLED_ROWS)
    sink = pa.BufferOutputStream()
    pq.write_table(first, sink, use_dictionary=False, compression=CODEC)
    stored = pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    unlike = {name for name in first.column_names if _is_unlike(first.column(name))}
    columns = [stored.schema.column(index) for index in range(len(stored.schema))]
    repeating = [
        one.path
        for one in columns
        if one.path not in unlike and not (_is_nested(one) and one.physical_type in _FLOATS)
    ]
    chunks = [stored.metadata.row_group(0).column(index) for index in range(len(columns))]
    codecs = {
        one.path: CODEC if one.path in repeating or _shrinks(chunk) else "none"
        for one, chunk in zip(columns, chunks, strict=True)
    }
    return {"use_dictionary": repeating, "compression": codecs}


def _shrinks(chunk: pq.ColumnChunkMetaData) -> bool:
    whole = chunk.total_uncompressed_size
    return bool(chunk.total_compressed_size <= WORTH_COMPRESSING * whole)


def _is_nested(column: pq.ColumnSchema) -> bool:
    return bool(column.max_repetition_level or column.max_definition_level > 1)


def _is_unlike(column: pa.ChunkedArray) -> bool:
    """Returns whether most values of a column are there once; not for one that is nested."""
    try:
        return bool(2 * pc.count_distinct(column).as_py() > len(column))
    except pa.ArrowNotImplementedError:  # which types can be compared varies with the version
        return False
