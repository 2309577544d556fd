"""Copies files as Parquet with small row groups, so that a part can be read without the rest.

CSV and JSON are always copied, and checked on the way; Parquet where its row groups are too large.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.exceptions import JobError
from sparkinfer.files.csv_rows import CsvFile
from sparkinfer.files.json_rows import JsonFile
from sparkinfer.files.parquet import open_parquet
from sparkinfer.files.schema import match_names
from sparkinfer.option_groups import CsvConfig
from sparkinfer.rows.reading import READ_ROWS, halved, read_batches
from sparkinfer.storage import file_system, join, make_folder

GROUP_ROWS, GROUP_BYTES = READ_ROWS, 2 << 20
"""Maximum of a row group; a larger row is a row group of its own."""

GROUPS_PER_FILE = 1024
"""After which a new file is started: reading one row group means reading the whole footer."""


class FileRows(Protocol):
    """Reads the rows of a file of one format; small, since it is sent with every task."""

    def read(self, path: str, columns: pa.Schema, remarks: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows, in batches of about the size of a row group.

        Args:
            path: of the file.
            columns: to read; those that the file lacks are left out. If it has none of them, its
                first column represents the rows.
            remarks: receives a phrase on what could not be kept as it is.

        Raises:
            InputError: the file does not hold what its format or its header promises.
        """


@dataclass(frozen=True)
class ParquetRows:
    """Reads Parquet, with the file's own types; INT96 timestamps become microseconds."""

    def read(self, path: str, columns: pa.Schema, remarks: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows; see `FileRows`. One row group of a copy is held in memory."""
        with open_parquet(path) as file:
            names = _present(columns.names, file.schema_arrow.names)
            groups = range(file.num_row_groups)
            yield from read_batches(file, groups, names, GROUP_ROWS, GROUP_BYTES)


@dataclass(frozen=True)
class CsvRows:
    """Reads CSV.

    Attributes:
        options: how the files are written.
    """

    options: CsvConfig

    def read(self, path: str, columns: pa.Schema, remarks: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows; see `FileRows`."""
        file = CsvFile(path, self.options)
        yield from file.batches(_present(columns.names, file.schema().names))


@dataclass(frozen=True)
class JsonRows:
    """Reads JSON.

    Attributes:
        schema: all columns, with types that hold the values of all files.
    """

    schema: pa.Schema

    def read(self, path: str, columns: pa.Schema, remarks: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows; see `FileRows`."""
        file = JsonFile(path)
        names = _present(columns.names, self.schema.names)
        yield from file.batches(pa.schema([self.schema.field(name) for name in names]))
        if file.halves:
            remarks.append(f"{file.halves} strings held half a character, now U+FFFD")


def _present(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    """Returns the wanted columns as a file spells them; its first one if it has none of them.

    Rows without any column would not be counted.
    """
    return list(match_names(wanted, there).values()) or list(there[:1])


@dataclass(frozen=True)
class Copy:
    """What became of a file.

    Attributes:
        names: of its copies, which together hold its rows in order.
        remarks: on what could not be kept as it is, as phrases.
    """

    names: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class FileCopier:
    """Copies files; small, since it is sent with every task.

    Attributes:
        root: the folder of the files.
        folder: where to put the copies, each in the same subfolder as its file below the root.
        columns: columns to copy. Those that the file lacks are left out.
        rows: reads the files.
    """

    root: str
    folder: str
    columns: pa.Schema
    rows: FileRows

    def __call__(self, name: str) -> Copy:
        """Copies a file.

        The names of copies are new each time: a task may be retried while its first attempt still
        runs.

        Raises:
            InputError: see `FileRows.read`.
            JobError: the file is damaged or gone, or a copy cannot be written.
        """
        path = join(self.root, name)
        make_folder(join(self.folder, *name.split("/")[:-1]))
        attempt = uuid.uuid4().hex
        remarks: list[str] = []
        copies: list[str] = []
        try:
            batches = self._read(path, remarks)
            for first in batches:
                copies.append(f"{name}-{attempt}-{len(copies):05d}.parquet")
                self._write(copies[-1], first, islice(batches, GROUPS_PER_FILE - 1))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise JobError(
                f"input file {path!r} cannot be copied ({type(error).__name__}: {reason}); repair "
                "it and run again"
            ) from error
        return Copy(tuple(copies), tuple(remarks))

    def _write(self, name: str, first: pa.RecordBatch, others: Iterable[pa.RecordBatch]) -> None:
        fs, path = file_system(join(self.folder, name))
        with fs.open(path, "wb") as handle, pq.ParquetWriter(handle, first.schema) as writer:
            for batch in chain([first], others):
                writer.write_batch(batch)

    def _read(self, path: str, remarks: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in self.rows.read(path, self.columns, remarks):
            yield from halved(batch, GROUP_BYTES)
