"""The Parquet file whose rows a process has read in part, kept from one range to the next.

Parquet has no way into the middle of a row group: a range is read by decoding what is before it. A
process whose ranges follow one another, as those of chunks do, decodes a row group once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.files.parquet import open_parquet
from sparkinfer.storage import file_version

Begin = Callable[[pq.ParquetFile, int, Sequence[str]], Iterator[pa.RecordBatch]]
"""Returns the batches of a row group's columns, from its first row on."""


class _Place:
    """How far a row group has been read.

    Args:
        group: its index.
        names: of the columns that are read.
        batches: of it, from its first row on.

    Attributes:
        next_row: number of the first row that can still be read.
    """

    def __init__(self, group: int, names: Sequence[str], batches: Iterator[pa.RecordBatch]) -> None:
        self.group = group
        self.next_row = 0
        self._names = names
        self._batches = batches
        self._held: pa.RecordBatch | None = None  # its first row is the next

    def leads_to(self, group: int, names: Sequence[str], first: int) -> bool:
        """Returns whether a row can be read from here."""
        return (self.group, self._names) == (group, names) and self.next_row <= first

    def read(self, first: int, end: int) -> Iterator[pa.RecordBatch]:
        """Yields rows, from one that has not been read yet."""
        while self.next_row < end:
            batch = next(self._batches, None) if self._held is None else self._held
            if batch is None:
                return
            start, stop = self.next_row, self.next_row + batch.num_rows
            self.next_row = min(stop, end)
            self._held = batch.slice(end - start) if end < stop else None
            if first < stop:
                here = max(first - start, 0)
                yield batch.slice(here, self.next_row - start - here)


class OpenFile:
    """A Parquet file that is open; for one thread at a time.

    Args:
        path: of it.
        version: tells it from what its path was or will be; None: not kept.
        begin: reads its row groups.

    Attributes:
        file: its metadata and rows.
    """

    def __init__(self, path: str, version: object, begin: Begin) -> None:
        self._begin = begin
        self._stack = ExitStack()
        self.file = self._stack.enter_context(open_parquet(path))
        self._is = (path, version, begin, os.getpid())
        self._place: _Place | None = None

    def is_of(self, path: str, version: object, begin: Begin) -> bool:
        """Returns whether it is what opening a path would give, in a process that may go on.

        One that is forked has the place of its parent in a file, and moving it moves the parent's.
        """
        return self._is == (path, version, begin, os.getpid())

    def rows(
        self, group: int, names: Sequence[str], first: int, end: int
    ) -> Iterator[pa.RecordBatch]:
        """Yields some rows of a row group, in order.

        Args:
            group: its index.
            names: of the columns.
            first: number of the first row in the row group.
            end: number of the row after the last.
        """
        place, self._place = self._place, None
        if place is None or not place.leads_to(group, names, first):
            place = _Place(group, names, self._begin(self.file, group, names))
        yield from place.read(first, end)
        self._place = place

    @property
    def is_within_a_row_group(self) -> bool:
        """Whether there are rows left of the row group that was read last."""
        place = self._place
        if place is None:
            return False
        rows: int = self.file.metadata.row_group(place.group).num_rows
        return place.next_row < rows

    def close(self) -> None:
        """Closes it."""
        self._place = None
        self._stack.close()


_kept: deque[OpenFile] = deque()
"""None, or one: two would hold the memory of two row groups that are read."""


@contextmanager
def kept_file(path: str, begin: Begin, in_part: bool) -> Iterator[OpenFile]:
    """Yields a file as it was left, if it is the one that was last read in part, else opened.

    Args:
        path: of it.
        begin: reads its row groups; a function of a module.
        in_part: whether only some rows of a row group are read.
    """
    # Looked at before the file is opened: what is newer than that is opened again.
    version = file_version(path) if in_part else None
    kept = _taken()
    if kept is not None and not kept.is_of(path, version, begin):
        kept.close()
        kept = None
    file = kept or OpenFile(path, version, begin)
    try:
        yield file
    except BaseException:
        file.close()
        raise
    if in_part and file.is_within_a_row_group:
        _keep(file)
    else:
        file.close()


def _taken() -> OpenFile | None:
    try:
        return _kept.pop()
    except IndexError:
        return None


def _keep(file: OpenFile) -> None:
    while (other := _taken()) is not None:  # of another thread
        other.close()
    _kept.append(file)
