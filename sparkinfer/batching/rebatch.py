"""Re-cuts a stream of Arrow batches by rows and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from sparkinfer.exceptions import JobError

FIRST_WINDOW_ROWS = 256
"""The first window is small, so that a consumer of a few rows does not wait for thousands."""

WINDOW_GROWTH = 8
"""Factor from each window to the next. Small windows need more batches for the same rows, and every
chunk's task begins with them, so there should be few."""


def growing_rows(largest: int) -> Iterator[int]:
    """Yields the maximum rows of each window, growing from `FIRST_WINDOW_ROWS` to `largest`."""
    limit = min(FIRST_WINDOW_ROWS, largest)
    while True:
        yield limit
        limit = min(limit * WINDOW_GROWTH, largest)


def same_rows(rows: int) -> Iterator[int]:
    """Yields the same limit forever."""
    while True:
        yield rows


def rebatch(
    batches: Iterable[pa.RecordBatch], max_rows: Iterator[int], max_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of all batches, in order, in batches bounded in rows and in bytes.

    A batch holds at least one row, however large that row is. An input batch is pulled only when
    its rows are needed.

    Args:
        batches: of one schema; they may be empty.
        max_rows: maximum rows of each next batch, consumed one at a time; each at least 1.
        max_bytes: maximum bytes of a batch in Arrow memory.
    """
    held: list[pa.RecordBatch] = []
    rows = size = 0
    limit = next(max_rows)
    for whole in batches:
        rest = whole
        while rest.num_rows:
            part = _first_rows(rest, limit - rows, max_bytes - size, may_be_empty=bool(held))
            if part.num_rows:
                held.append(part)
                rows, size = rows + part.num_rows, size + part.nbytes
                rest = rest.slice(part.num_rows)
            if rest.num_rows or rows >= limit or size >= max_bytes:
                yield joined(held)
                held, rows, size = [], 0, 0
                limit = next(max_rows)
    if held:
        yield joined(held)


def _first_rows(
    batch: pa.RecordBatch, max_rows: int, max_bytes: int, may_be_empty: bool
) -> pa.RecordBatch:
    """Returns as many of the first rows as fit, at least one unless `may_be_empty`."""
    part = batch.slice(0, max_rows)
    if part.num_rows > 1 and part.nbytes > max_bytes:
        part = part.slice(0, max(1, part.num_rows * max_bytes // part.nbytes))
    while part.num_rows > 1 and part.nbytes > max_bytes:
        part = part.slice(0, part.num_rows // 2)
    if may_be_empty and part.nbytes > max_bytes:
        return part.slice(0, 0)
    return part


def joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns batches concatenated into one."""
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches).combine_chunks()
    joined = table.to_batches()
    if len(joined) > 1:  # texts or bytes of a column in Arrow end at 2 GiB
        raise JobError(
            f"a batch of {table.num_rows:,} rows holds {table.nbytes:,} bytes, more than 2 GiB in "
            "one column; lower batch_size"
        )
    return joined[0]
