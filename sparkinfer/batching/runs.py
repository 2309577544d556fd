"""Equal inputs that stand together: how they are recognised, and windows that do not part them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.batching.rebatch import joined

Hashes = npt.NDArray[np.uint64]

MOST_ROWS, MOST_BYTES = 1 << 18, 64 << 20
"""Of equal inputs in one window: as many rows as the largest chunk has by default."""


def hash_inputs(rows: pa.RecordBatch) -> Hashes:
    """Returns a hash of each row, uint64 (rows,), the same in every process.

    Equal rows have equal hashes. Where different rows have, too, no more is lost than that one of
    them may be scored twice: nothing is taken for equal by its hash.
    """
    columns = [_values(column) for column in rows.columns]
    digests = [_digest(values) for values in zip(*columns, strict=True)]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def hash_inputs_of(names: Sequence[str], rows: pa.RecordBatch) -> Hashes:
    """Returns a hash of some columns of each row; see `hash_inputs`."""
    columns = [rows.column(name) for name in names]
    return hash_inputs(pa.RecordBatch.from_arrays(columns, names=list(names)))


def _digest(values: tuple[Any, ...]) -> bytes:
    text = repr(values).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).digest()


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())  # which need not be UTF-8
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # within a list of messages
        return list(map(_value, column))
    return values


def _value(one: pa.Scalar) -> Any:
    try:
        return one.as_py()
    except UnicodeDecodeError:
        return b""


def whole_runs(
    windows: Iterable[pa.RecordBatch],
    hashes: Callable[[pa.RecordBatch], Hashes],
    most_rows: int = MOST_ROWS,
    most_bytes: int = MOST_BYTES,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of windows in windows that end only where the next input is another one.

    More rows of one input than a window may hold are in several.

    Args:
        windows: rows in order, none of them empty.
        hashes: returns the hash of each row's input.
        most_rows: maximum rows of a window, unless a given one has more.
        most_bytes: the same in Arrow memory.
    """
    held: list[pa.RecordBatch] = []  # of one input, which may go on
    last: np.uint64 | None = None

    def fits(more: pa.RecordBatch) -> bool:
        both = [*held, more]
        return sum(one.num_rows for one in both) <= most_rows and _bytes(both) <= most_bytes

    for window in windows:
        found = hashes(window)
        changes = np.flatnonzero(found[1:] != found[:-1]) + 1
        first = int(changes[0]) if len(changes) else window.num_rows
        start = int(changes[-1]) if len(changes) else 0  # of the last input
        more = first if found[0] == last else 0  # rows of the input that is held
        if held and not fits(window.slice(0, more)):
            yield joined(held)
            held = []
        if more:
            held.append(window.slice(0, more))
        if held and start >= more and not fits(window.slice(more, start - more)):
            yield joined(held)
            held = []
        if more < window.num_rows:
            ended = [*held, window.slice(more, start - more)] if start > more else held
            if ended:
                yield joined(ended)
            held = [window.slice(max(start, more))]
        last = found[-1]
    if held:
        yield joined(held)


def _bytes(batches: Iterable[pa.RecordBatch]) -> int:
    return sum(int(batch.nbytes) for batch in batches)
