"""Copies Parquet files into small row groups, so that a part can be read without the rest."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.exceptions import JobError
from sparkinfer.rows.reading import READ_ROWS, halved, match_names, open_parquet, read_batches
from sparkinfer.storage import file_system, join, make_folder

GROUP_ROWS, GROUP_BYTES = READ_ROWS, 2 << 20
"""Maximum of a row group; a larger row is a row group of its own."""

GROUPS_PER_FILE = 1024
"""After which a new file is started: reading one row group means reading the whole footer."""


@dataclass(frozen=True)
class FileCopier:
    """Copies files; small, since it is sent with every task.

    Attributes:
        root: the folder of the files.
        folder: where to put the copies, each in the same subfolder as its file below the root.
        columns: columns to copy, with the file's values and types. Those that the file lacks are
            left out; INT96 timestamps become microseconds, as they are read.
    """

    root: str
    folder: str
    columns: tuple[str, ...]

    def copy(self, name: str) -> list[str]:
        """Copies a file and returns the names of its copies, which together hold its rows in order.

        The names are new each time: a task may be retried while its first attempt still runs.
        One row group of a copy is held in memory.

        Raises:
            JobError: the file is damaged or gone.
        """
        make_folder(join(self.folder, *name.split("/")[:-1]))
        attempt = uuid.uuid4().hex
        batches = self._read(join(self.root, name))
        copies: list[str] = []
        for first in batches:
            copies.append(f"{name}-{attempt}-{len(copies):05d}.parquet")
            fs, path = file_system(join(self.folder, copies[-1]))
            with fs.open(path, "wb") as handle, pq.ParquetWriter(handle, first.schema) as writer:
                for batch in chain([first], islice(batches, GROUPS_PER_FILE - 1)):
                    writer.write_batch(batch)
        return copies

    def _read(self, path: str) -> Iterator[pa.RecordBatch]:
        try:
            with open_parquet(path) as file:
                found = match_names(self.columns, file.schema_arrow.names)
                groups = range(file.num_row_groups)
                names = list(found.values())
                for batch in read_batches(file, groups, names, GROUP_ROWS, GROUP_BYTES):
                    yield from halved(batch, GROUP_BYTES)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise JobError(
                f"input file {path!r} cannot be read ({type(error).__name__}: {reason}); repair it "
                "and run again"
            ) from error
