"""A stream of batches of texts, cut again into windows: the rows that are looked at together."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

FIRST_WINDOW_ROWS = 256
"""The first window is small, so that a consumer of a few rows does not wait for thousands."""

WINDOW_GROWTH = 8
"""Of each window over the one before. Small windows have more batches for the same rows, and a
chunk's task begins with them, so there should be few."""


def cut_windows(
    batches: Iterable[Sequence[str | None]], *, max_rows: int, max_bytes: int
) -> Iterator[list[str | None]]:
    """Yields the rows of all batches, in order, in windows bounded in rows and in bytes.

    Window sizes grow by `WINDOW_GROWTH` from `FIRST_WINDOW_ROWS` up to `max_rows`. A window
    holds at least one row, however long that row is. A batch is pulled only when its rows are
    needed.

    Args:
        batches: texts, or None where there is none; batches may be empty.
        max_rows: most rows in a window.
        max_bytes: most bytes of memory held by the texts of a window.
    """
    limit = min(FIRST_WINDOW_ROWS, max_rows)
    window: list[str | None] = []
    held = 0
    for batch in batches:
        for text in batch:
            size = sys.getsizeof(text)
            if window and (len(window) >= limit or held + size > max_bytes):
                yield window
                limit = min(limit * WINDOW_GROWTH, max_rows)
                window, held = [], 0
            window.append(text)
            held += size
    if window:
        yield window
