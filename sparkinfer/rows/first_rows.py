"""The first rows of an input, for a worker that looks at them before the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from sparkinfer.rows.copying import FileRows

ROWS_OF_TABLE = 256
"""Rows of a table or a DataFrame that are looked at."""


@dataclass(frozen=True)
class FirstOfFiles:
    """Reads rows of files from the start, as many as are asked for; see `RowsOfInput`.

    Attributes:
        paths: of the files, in order.
        rows: reads the rows of one.
        columns: to read.
    """

    paths: tuple[str, ...]
    rows: FileRows
    columns: pa.Schema

    def __call__(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows; those of files without all the columns are left out."""
        for path in self.paths:
            for batch in self.rows.read(path, self.columns, []):
                if set(self.columns.names) <= set(batch.schema.names):
                    yield batch.select(self.columns.names)


@dataclass(frozen=True)
class FirstOfTable:
    """Rows that were fetched from a table; see `RowsOfInput`.

    Attributes:
        rows: the first `ROWS_OF_TABLE`.
    """

    rows: pa.RecordBatch

    def __call__(self) -> Iterator[pa.RecordBatch]:
        """Yields them."""
        yield self.rows
