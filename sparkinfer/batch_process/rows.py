"""The rows of Parquet files as a dataset that torch can load, read by ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.storage import file_system, join, names_in


@dataclass
class ParquetRows:
    """Rows as dicts of columns, in the order of the files' names.

    Attributes:
        folder: of the files.
        files: their names, with the rows of each.
        numbers: columns of numbers or booleans without nulls, which become tensors, with the
            names of their types in numpy.
    """

    folder: str
    files: Sequence[tuple[str, int]]
    numbers: Mapping[str, str]
    _held: tuple[int, int, pa.Table] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return sum(rows for _, rows in self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns rows; torch asks for those of a batch together."""
        starts = [0, *accumulate(rows for _, rows in self.files)]
        rows: list[dict[str, Any]] = []
        at = 0
        while at < len(indices):
            file = bisect_right(starts, indices[at]) - 1
            first, table = self._group_of(file, indices[at] - starts[file])
            first += starts[file]
            end = at
            while end < len(indices) and first <= indices[end] < first + table.num_rows:
                end += 1
            rows += table.take([index - first for index in indices[at:end]]).to_pylist()
            at = end
        return rows

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns a batch: numbers and booleans as tensors, other columns as lists."""
        import torch

        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return {
            # Of doubles, torch would make floats by default.
            name: torch.from_numpy(np.array(values, self.numbers[name]))
            if name in self.numbers
            else values
            for name, values in columns.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": None}

    def _group_of(self, file: int, row: int) -> tuple[int, pa.Table]:
        """Returns the row group with a row of a file, and the number of its first row there."""
        if self._held is not None:
            held, first, table = self._held
            if held == file and first <= row < first + table.num_rows:
                return first, table
        fs, name = file_system(join(self.folder, self.files[file][0]))
        with fs.open(name) as opened, pq.ParquetFile(opened) as parquet:
            first, group = 0, 0
            while row >= first + parquet.metadata.row_group(group).num_rows:
                first += parquet.metadata.row_group(group).num_rows
                group += 1
            table = parquet.read_row_group(group)
        self._held = (file, first, table)
        return first, table


def open_rows(folder: str) -> ParquetRows:
    """Returns the rows of a folder of Parquet files."""
    files: list[tuple[str, int]] = []
    schema: pa.Schema | None = None
    with_nulls: set[str] = set()
    for name in names_in(folder):
        if name.startswith(("_", ".")):
            continue
        fs, path = file_system(join(folder, name))
        with fs.open(path) as opened, pq.ParquetFile(opened) as parquet:
            files.append((name, parquet.metadata.num_rows))
            schema = parquet.schema_arrow if schema is None else schema
            with_nulls |= _with_nulls(parquet.metadata)
    numbers = {
        field.name: str(np.dtype(field.type.to_pandas_dtype()))
        for field in schema or ()
        if _is_number(field.type) and field.name not in with_nulls
    }
    return ParquetRows(folder, files, numbers)


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _with_nulls(metadata: pq.FileMetaData) -> set[str]:
    """Returns the columns that have nulls, or of which it is not known."""
    found = set()
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            statistics = column.statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                found.add(column.path_in_schema)
    return found
