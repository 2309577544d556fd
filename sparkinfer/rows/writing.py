"""Scored columns beside the columns that they belong to, written as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.storage import file_system


class CarriedRows:
    """Columns that wait for the scores of their rows; both come in the same order.

    Args:
        prefix: put before the name of every scored column.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._waiting: deque[pa.Table] = deque()

    def put(self, carried: pa.Table) -> None:
        """Takes the carried columns of the next rows."""
        self._waiting.append(carried)

    def complete(self, scored: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """Yields the carried columns with the scored ones behind them, as the latter come."""
        for batch in scored:
            rows = self._take(batch.num_rows)
            for field, column in zip(batch.schema, batch.columns, strict=True):
                rows = rows.append_column(field.with_name(self._prefix + field.name), column)
            yield rows

    def _take(self, rows: int) -> pa.Table:
        """Returns the first rows that wait and leaves the rest."""
        taken = []
        while rows > 0:
            table = self._waiting.popleft()
            if table.num_rows > rows:
                self._waiting.appendleft(table.slice(rows))
                table = table.slice(0, rows)
            taken.append(table)
            rows -= table.num_rows
        return pa.concat_tables(taken)


def write_tables(path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes tables to a Parquet file as they come and returns the number of rows."""
    fs, name = file_system(path)
    rows = 0
    with fs.open(name, "wb") as handle, pq.ParquetWriter(handle, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))
            rows += table.num_rows
    return rows
