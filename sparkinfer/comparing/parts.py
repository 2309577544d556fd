"""Rows in a temporary file, divided so that equal ones are in the same part of it.

What has to be found together is so found in a part, and no more than a part is in memory.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO

import numpy as np
import pyarrow as pa

from sparkinfer.comparing.values import Integers
from sparkinfer.exceptions import JobError

PART_BYTES = 64 << 20
"""Of a part, both outputs together, where rows are spread evenly."""

_GATHERED_BYTES = 32 << 20
"""Rows that are divided at once: a row group is too little for many parts."""


def parts_for(total_bytes: int) -> int:
    """Returns how many parts to make of rows of so many bytes."""
    return max(1, -(-total_bytes // PART_BYTES))


class Parts:
    """The rows of one output, divided; a context that removes its file at the end.

    Args:
        schema: of the rows.
        count: of parts.
    """

    def __init__(self, schema: pa.Schema, count: int) -> None:
        self._schema = schema
        self._places: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self._waiting: list[pa.RecordBatch] = []
        self._numbers: list[Integers] = []
        self._bytes = 0

    def __enter__(self) -> Parts:
        self._file: IO[bytes] = tempfile.TemporaryFile()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, rows: pa.RecordBatch, hashes: Integers) -> None:
        """Adds rows.

        Args:
            rows: in the order in which each part is to have them.
            hashes: from 0; rows with the same are in the same part.

        Raises:
            JobError: there is no room for the file.
        """
        self._waiting.append(rows)
        self._numbers.append(hashes % len(self._places))
        self._bytes += rows.nbytes
        if self._bytes >= _GATHERED_BYTES:
            self._divide()

    def read(self) -> Iterator[pa.Table]:
        """Yields the rows of each part."""
        self._divide()
        for places in self._places:
            yield pa.Table.from_batches(map(self._read, places), self._schema)

    def _divide(self) -> None:
        if not self._waiting:
            return
        numbers = np.concatenate(self._numbers)
        order = np.argsort(numbers, kind="stable")
        rows = pa.Table.from_batches(self._waiting).take(pa.array(order))
        ends = np.cumsum(np.bincount(numbers, minlength=len(self._places)))
        self._waiting, self._numbers, self._bytes = [], [], 0
        start = 0
        with _lack_of_room_told():
            for places, end in zip(self._places, ends.tolist(), strict=True):
                for batch in rows.slice(start, end - start).to_batches():
                    places.append(self._write(batch))
                start = end
            self._file.flush()

    def _write(self, batch: pa.RecordBatch) -> tuple[int, int]:
        """Writes rows at the end of the file; returns where they begin, and their bytes."""
        start, content = self._file.tell(), batch.serialize()
        self._file.write(content)
        return start, content.size

    def _read(self, place: tuple[int, int]) -> pa.RecordBatch:
        start, size = place
        self._file.seek(start)
        return pa.ipc.read_record_batch(pa.py_buffer(self._file.read(size)), self._schema)


@contextmanager
def _lack_of_room_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise JobError(
            "the rows to compare do not fit into the folder of temporary files, "
            f"{tempfile.gettempdir()!r}; set TMPDIR to one with more room"
        ) from error
