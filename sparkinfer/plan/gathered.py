"""The copy of an input in which equal inputs stand together, made before a run with `dedupe`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from sparkinfer.exceptions import RowConservationError
from sparkinfer.plan.chunks import ChunkLimits, RowGroups, cut_chunks
from sparkinfer.rows.copying import GROUP_BYTES, GROUP_ROWS
from sparkinfer.rows.gathering import RUN_BYTES, RUN_ROWS, Gathered, RunMerger, RunSorter
from sparkinfer.rows.reading import COPIES, GATHERED, ChunkReader, InputFolders
from sparkinfer.storage import join, remove

T = TypeVar("T")

RANGE_BYTES = 256 << 20
"""Encoded bytes that one task merges; the hashes are cut into as many ranges as that takes."""

MOST_RANGES = 256

GROUPS_IN_CHUNK, LEAST_GROUP_ROWS = 64, 32
"""Row groups are what a chunk is shared out by: many, but not tiny."""


class OnEach(Protocol):
    """Calls a function with each name; see `FileAccess.on_each`."""

    def __call__(self, act: Callable[[str], T], names: Sequence[str], /) -> list[T]:
        """Returns the results in the order of the names."""


def gather(
    files: Sequence[RowGroups],
    reader: ChunkReader,
    inputs: Sequence[str],
    limits: ChunkLimits,
    on_each: OnEach,
) -> Gathered:
    """Returns the names of the copy's files, and how many rows and different inputs they hold.

    What is left by a process that dies meanwhile is removed once a later run is done.

    Args:
        files: of the input; their `text_bytes` are not looked at.
        reader: of the columns to copy.
        inputs: columns by whose values rows are gathered.
        limits: of the chunks.
        on_each: calls a function where there is room for it.

    Raises:
        JobError: the copy could not be made.
        RowConservationError: it has more or fewer rows than the input.
    """
    attempt = uuid.uuid4().hex
    folders: InputFolders = reader.folders
    runs_in = join(folders.copies, f"runs-{attempt}")
    size = sum(sum(file.read_bytes) for file in files)
    ranges = min(MOST_RANGES, 1 + size // RANGE_BYTES)
    by_bytes = [RowGroups(one.path, one.rows, one.read_bytes, one.read_bytes) for one in files]
    parts = tuple(chunk.pieces for chunk in cut_chunks(by_bytes, ChunkLimits(RUN_ROWS, RUN_BYTES)))
    sorter = RunSorter(reader, tuple(inputs), parts, ranges, runs_in)
    runs = [run for made in on_each(sorter, _numbers(len(parts))) for run in made]
    merger = RunMerger(
        tuple(runs),
        reader.schema,
        min(limits.rows, GROUP_ROWS, max(LEAST_GROUP_ROWS, limits.rows // GROUPS_IN_CHUNK)),
        max(1, min(GROUP_BYTES, limits.text_bytes // 4)),
        limits.rows,
        join(folders.copies, f"{GATHERED.removeprefix(COPIES)}{attempt}"),
        runs_in,
    )
    made = on_each(merger, _numbers(ranges))
    remove(runs_in)
    names = [f"{GATHERED}{attempt}/{name}" for one in made for name in one.names]
    rows = sum(one.rows for one in made)
    expected = sum(sum(file.rows) for file in files)
    if rows != expected:
        raise RowConservationError(
            f"the input has {expected} rows and its sorted copy {rows}; run again"
        )
    return Gathered(tuple(names), rows, sum(one.inputs for one in made))


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]
