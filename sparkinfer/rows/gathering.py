"""Copies rows so that those with equal inputs stand together: an external sort by a hash of inputs.

First, parts of the input are each read, and written as sorted runs of at most `RUN_BYTES`. Then the
runs are merged, each range of hashes on its own. A task holds one run, or a batch of each of at
most `MERGED_AT_ONCE` runs, however many rows there are and however often an input repeats.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.batching.rebatch import joined, rebatch, same_rows
from sparkinfer.batching.runs import Hashes, hash_inputs_of, whole_runs
from sparkinfer.exceptions import JobError
from sparkinfer.files.parquet import open_parquet
from sparkinfer.rows.copying import GROUP_BYTES, GROUP_ROWS, GROUPS_PER_FILE
from sparkinfer.rows.reading import ChunkReader, Piece
from sparkinfer.rows.writing import PLAIN_DAYS
from sparkinfer.storage import file_system, join, make_folder

RUN_ROWS, RUN_BYTES = 1 << 20, 64 << 20
"""Maximum of a sorted run, which is held in memory twice while it is sorted."""

MERGED_AT_ONCE = 32
"""Runs of which a merge holds a batch each; more of them are merged in several passes."""

T = TypeVar("T")


@dataclass(frozen=True)
class SortedRun:
    """Rows in the order of their hashes, in a file of their own.

    Attributes:
        path: of the file. Its first column is the hash; row groups are of one range of hashes.
        ends: for each range, how many row groups the ranges up to it have.
    """

    path: str
    ends: tuple[int, ...]

    def groups(self, number: int) -> range:
        """Returns the row groups of a range of hashes."""
        return range(self.ends[number - 1] if number else 0, self.ends[number])


@dataclass(frozen=True)
class Gathered:
    """Rows of a range of hashes, those with equal inputs next to one another.

    Attributes:
        names: of their files, in order.
        rows: how many there are.
        inputs: how many different inputs they have.
    """

    names: tuple[str, ...]
    rows: int
    inputs: int


@contextmanager
def _failure_named(what: str) -> Iterator[None]:
    """Raises JobError in place of what reading or writing raises."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise JobError(
            f"{what} for dedupe=true failed ({type(error).__name__}: {reason}); free some "
            "space or repair it and run again, or leave the option out"
        ) from error


@dataclass(frozen=True)
class RunSorter:
    """Writes sorted runs; small, since it is sent with every task.

    Attributes:
        reader: reads the columns of the copy.
        inputs: columns by whose values rows are gathered.
        parts: of the input, each read by one call.
        ranges: how many ranges of hashes there are.
        folder: for the runs.
    """

    reader: ChunkReader
    inputs: tuple[str, ...]
    parts: tuple[tuple[Piece, ...], ...]
    ranges: int
    folder: str

    def __call__(self, part: str) -> list[SortedRun]:
        """Returns the runs of a part, given by its number.

        Raises:
            JobError: the input cannot be read, or a run not be written.
        """
        make_folder(self.folder)
        rows = self.reader.read(self.parts[int(part)])
        with _failure_named("sorting the input"):
            windows = rebatch(rows, same_rows(RUN_ROWS), RUN_BYTES)
            return [self._write(window) for window in windows]

    def _write(self, rows: pa.RecordBatch) -> SortedRun:
        hashes = hash_inputs_of(self.inputs, rows)
        order = np.argsort(hashes, kind="stable")
        hashes, rows = hashes[order], rows.take(pa.array(order))
        # By the upper half, so that the product fits.
        of_row = (hashes >> np.uint64(32)) * np.uint64(self.ranges) >> np.uint64(32)
        cuts = np.searchsorted(of_row, np.arange(1, self.ranges + 1, dtype=np.uint64))
        return write_run(self.folder, _slices(rows, hashes, cuts.tolist()), rows.schema)


def _slices(
    rows: pa.RecordBatch, hashes: Hashes, cuts: Sequence[int]
) -> Iterator[list[pa.RecordBatch]]:
    start = 0
    for end in cuts:
        yield [_with_hashes(rows.slice(start, end - start), hashes[start:end])]
        start = end


def write_run(
    folder: str, ranges: Iterable[Iterable[pa.RecordBatch]], schema: pa.Schema
) -> SortedRun:
    """Returns the run in which sorted rows were written.

    Args:
        folder: for its file.
        ranges: the rows of each range of hashes, after their hashes.
        schema: of the rows.
    """
    path, groups, ends = join(folder, f"{uuid.uuid4().hex}.parquet"), 0, []
    fs, name = file_system(path)
    with fs.open(name, "wb") as handle, pq.ParquetWriter(handle, _numbered(schema)) as writer:
        for of_range in ranges:
            for group in rebatch(of_range, same_rows(GROUP_ROWS), GROUP_BYTES):
                writer.write_batch(group)
                groups += 1
            ends.append(groups)
    return SortedRun(path, tuple(ends))


def _numbered(schema: pa.Schema) -> pa.Schema:
    """Returns the schema of a run: columns by their number, after the hash."""
    columns = [pa.field(str(number), field.type) for number, field in enumerate(schema)]
    return pa.schema([pa.field("hash", pa.uint64()), *columns])


def _with_hashes(rows: pa.RecordBatch, hashes: Hashes) -> pa.RecordBatch:
    columns = [pa.array(hashes), *rows.columns]
    return pa.RecordBatch.from_arrays(columns, schema=_numbered(rows.schema))


def _hashes(rows: pa.RecordBatch) -> Hashes:
    hashes: Hashes = rows.column(0).to_numpy()
    return hashes


@dataclass(frozen=True)
class RunMerger:
    """Merges a range of hashes of sorted runs; small, since it is sent with every task.

    Attributes:
        runs: all of them.
        schema: of the rows.
        group_rows: of a row group, which is exceeded by less than as many, unless for one input.
        group_bytes: the same in Arrow memory.
        most_rows: with one input in a row group.
        folder: for the files.
        passing: folder for runs that are merged again.
    """

    runs: tuple[SortedRun, ...]
    schema: pa.Schema
    group_rows: int
    group_bytes: int
    most_rows: int
    folder: str
    passing: str

    def __call__(self, number: str) -> Gathered:
        """Returns the files of a range, given by its number; row groups end between inputs.

        The names of the files are new each time: a task may be retried while its first attempt
        still runs.

        Raises:
            JobError: a run cannot be read, or a file not be written.
        """
        make_folder(self.folder)
        with _failure_named("merging the sorted input"):
            return self._write(merged(self._sources(int(number))))

    def _sources(self, number: int) -> list[Iterator[pa.RecordBatch]]:
        """Returns the rows of a few runs, in which those of many have been merged."""
        waiting = [(run, run.groups(number)) for run in self.runs if run.groups(number)]
        while len(waiting) > MERGED_AT_ONCE:
            first, waiting = waiting[:MERGED_AT_ONCE], waiting[MERGED_AT_ONCE:]
            rows = merged([_read(run, groups) for run, groups in first])
            run = write_run(self.passing, [rows], self.schema)
            waiting.append((run, run.groups(0)))
        return [_read(run, groups) for run, groups in waiting]

    def _write(self, rows: Iterator[pa.RecordBatch]) -> Gathered:
        windows = rebatch(rows, same_rows(self.group_rows), self.group_bytes)
        groups = whole_runs(windows, _hashes, self.most_rows)
        noted = self.schema.with_metadata(PLAIN_DAYS)
        names: list[str] = []
        count = inputs = 0
        last: np.uint64 | None = None
        for first in groups:
            names.append(f"{uuid.uuid4().hex}-{len(names):05d}.parquet")
            fs, path = file_system(join(self.folder, names[-1]))
            with fs.open(path, "wb") as handle, pq.ParquetWriter(handle, noted) as writer:
                for group in _first_and(first, groups, GROUPS_PER_FILE):
                    columns = pa.RecordBatch.from_arrays(group.columns[1:], schema=noted)
                    writer.write_table(pa.Table.from_batches([columns]), group.num_rows)
                    hashes = _hashes(group)
                    count += len(hashes)
                    inputs += int((hashes[1:] != hashes[:-1]).sum()) + int(hashes[0] != last)
                    last = hashes[-1]
        return Gathered(tuple(names), count, inputs)


def merged(sources: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of all sources in the order of their hashes.

    Args:
        sources: rows after their hashes, each in that order; none of their batches is empty.
    """
    heads = [(head, rest) for rest in sources if (head := next(rest, None)) is not None]
    while heads:
        bound = min(_hashes(head)[-1] for head, _ in heads)  # nothing below it comes any more
        taken: list[pa.RecordBatch] = []
        left: list[tuple[pa.RecordBatch, Iterator[pa.RecordBatch]]] = []
        for head, rest in heads:
            end = int(np.searchsorted(_hashes(head), bound, side="right"))
            if end:
                taken.append(head.slice(0, end))
            after = head.slice(end) if end < head.num_rows else next(rest, None)
            if after is not None:
                left.append((after, rest))
        heads = left
        rows = joined(taken)
        yield rows.take(pa.array(np.argsort(_hashes(rows), kind="stable")))


def _read(run: SortedRun, groups: range) -> Iterator[pa.RecordBatch]:
    with open_parquet(run.path) as file:
        for group in groups:
            yield from file.iter_batches(GROUP_ROWS, [group])


def _first_and(first: T, others: Iterator[T], most: int) -> Iterator[T]:
    yield first
    yield from islice(others, most - 1)
