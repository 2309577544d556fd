"""Whether chunks hold each row of their files once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from sparkinfer.plan.chunks import Chunk, RowGroups
from sparkinfer.rows.reading import Piece


def coverage_problem(chunks: Iterable[Chunk], files: Iterable[RowGroups]) -> str | None:
    """Returns what is wrong with the chunks of some files, None if they hold each row once.

    Args:
        chunks: whose pieces of other files are passed over.
        files: with the rows of their row groups, from the footers.
    """
    pieces: dict[str, list[Piece]] = {}
    for chunk in chunks:
        for piece in chunk.pieces:
            pieces.setdefault(piece.path, []).append(piece)
    for file in files:
        problem = _problem(file, pieces.get(file.path, []))
        if problem is not None:
            return f"{file.path!r}: {problem}"
    return None


def _problem(file: RowGroups, pieces: list[Piece]) -> str | None:
    """Returns what is wrong with the pieces of a file."""
    starts = list(accumulate(file.rows, initial=0))
    ranges = []
    for piece in pieces:
        last = piece.first + piece.count
        held = piece.before + piece.rows + piece.after
        if last > len(file.rows) or starts[last] - starts[piece.first] != held:
            return f"a chunk expects other row groups than the file has ({piece})"
        first_row = starts[piece.first] + piece.before
        ranges.append((first_row, first_row + piece.rows))
    end = 0
    for first_row, last_row in sorted(ranges):
        if first_row != end:
            twice = first_row < end
            return f"rows from {min(first_row, end)} are in {'two chunks' if twice else 'no chunk'}"
        end = last_row
    return None if end == starts[-1] else f"rows from {end} are in no chunk"
