"""The input, cut into chunks: the unit of commit and resume.

A chunk is a sequence of whole row groups where these are small. A larger row group is cut into
ranges of rows, each read from the row group's start; see `sparkinfer.plan.copies`. Where the input
is cut depends only on the files and on the chunk limits, not on what scores it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from sparkinfer.rows.reading import Piece


@dataclass(frozen=True)
class RowGroups:
    """The row groups of one Parquet file.

    Attributes:
        path: name of the file; see `InputFolders`.
        rows: rows of each row group.
        text_bytes: size of each row group's text column, as Parquet encodes it before compression.
        read_bytes: the same for all columns that are read.
    """

    path: str
    rows: tuple[int, ...]
    text_bytes: tuple[int, ...]
    read_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """Rows that are scored, published and recorded as a unit.

    Attributes:
        number: position among the chunks of an output, from 0.
        pieces: where its rows are.
    """

    number: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def digest(self) -> str:
        """Tells it from chunks with other rows: 16 hexadecimal digits."""
        text = json.dumps([_numbers(piece) for piece in self.pieces])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The number as used in file names, padded so that they sort by it."""
        return chunk_name(self.number)


def placed_chunk(number: int, pieces: Sequence[Piece]) -> Chunk:
    """Returns a chunk of pieces, which then know where in it their rows are."""
    starts = accumulate((piece.rows for piece in pieces), initial=0)
    placed = [
        replace(piece, chunk=number, place=start)
        for piece, start in zip(pieces, starts, strict=False)
    ]
    return Chunk(number, tuple(placed))


def _numbers(piece: Piece) -> list[str | int]:
    return [piece.path, piece.first, piece.count, piece.rows, piece.before, piece.after]


def chunk_name(number: int) -> str:
    """Returns the number of a chunk as used in file names, padded so that they sort by it."""
    return f"{number:08d}"


@dataclass(frozen=True)
class ChunkLimits:
    """Maximum size of a chunk; a row group's bytes are taken to be spread evenly over its rows.

    Attributes:
        rows: maximum rows.
        text_bytes: maximum bytes of text, unless a single row has more.
    """

    rows: int
    text_bytes: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.text_bytes < 1:
            raise ValueError(f"{self}: expected limits of at least 1")


DEFAULT_LIMITS = {
    "cpu": ChunkLimits(rows=1 << 14, text_bytes=2 << 20),
    "cuda": ChunkLimits(rows=1 << 18, text_bytes=64 << 20),
}
"""By what the model runs on. A crash loses the chunks being scored, which should be minutes of
work; each chunk has an overhead of about 0.4 s on Spark, which should be small next to its rows. A
worker with a model the size of BERT base scores tens to a few hundred rows/s on CPUs, so 16,384
rows take one worker 1 to 30 minutes and ten workers 5 s to 3 minutes. A GPU scores thousands of
rows/s: 262,144 rows take one 1 to 4 minutes and eight 7 to 30 s. The limits in bytes correspond to
rows of 128 and 256 bytes: longer rows take longer."""


def cut_chunks(
    files: Iterable[RowGroups], limits: ChunkLimits, first_number: int = 0
) -> tuple[Chunk, ...]:
    """Returns chunks that together hold each row once, in order.

    A chunk ends before the row group that would take it over a limit. A row group that exceeds a
    limit on its own is first cut into ranges of even size. An input without rows is one chunk
    without pieces, so that its output still has columns.

    Args:
        files: in the order in which they are read.
        limits: maximum size of a chunk.
        first_number: number of the first chunk.
    """
    chunks: list[Chunk] = []
    for pieces in _cut(files, limits):
        chunks.append(placed_chunk(first_number + len(chunks), pieces))
    return tuple(chunks) or (Chunk(first_number, ()),)


def count_ranges(rows: int, text_bytes: int, limits: ChunkLimits) -> int:
    """Returns how many ranges a row group is cut into; 1 if it stays whole, 0 if it has no rows."""
    return -(-rows // _fitting_rows(rows, text_bytes, limits))


def _fitting_rows(rows: int, text_bytes: int, limits: ChunkLimits) -> int:
    """Returns how many rows of a row group a chunk can hold."""
    if text_bytes <= limits.text_bytes:
        return limits.rows
    return max(1, min(limits.rows, limits.text_bytes * rows // text_bytes))


def _cut(files: Iterable[RowGroups], limits: ChunkLimits) -> Iterator[tuple[Piece, ...]]:
    pieces: list[Piece] = []
    rows = text_bytes = 0
    for file in files:
        for piece, more_bytes in _ranges(file, limits):
            too_large = rows + piece.rows > limits.rows or (
                text_bytes + more_bytes > limits.text_bytes
            )
            if pieces and too_large:
                yield tuple(pieces)
                pieces, rows, text_bytes = [], 0, 0
            _extend(pieces, piece)
            rows += piece.rows
            text_bytes += more_bytes
    if pieces:
        yield tuple(pieces)


def _ranges(file: RowGroups, limits: ChunkLimits) -> Iterator[tuple[Piece, int]]:
    """Yields the row groups of a file, whole or in ranges, each with the size of its text."""
    for group, (rows, size) in enumerate(zip(file.rows, file.text_bytes, strict=True)):
        if rows:
            for piece in Piece(file.path, group, 1, rows).cut(_fitting_rows(rows, size, limits)):
                yield piece, -(-size * piece.rows // rows)


def _extend(pieces: list[Piece], piece: Piece) -> None:
    """Appends a piece, merging it with the last one if it directly follows it.

    Gathered pieces stay as they are, so that shares of a chunk end between them. Two ranges of one
    row group are never in the same chunk: together they exceed a limit.
    """
    last = pieces[-1] if pieces else None
    is_next = last and last.path == piece.path and last.first + last.count == piece.first
    if last and is_next and not piece.is_gathered:
        pieces[-1] = Piece(
            last.path,
            last.first,
            last.count + piece.count,
            last.rows + piece.rows,
            last.before,
            piece.after,
        )
    else:
        pieces.append(piece)
