"""The input, cut into chunks: the unit of commit and resume.

A chunk is a run of whole row groups, so that all chunks together read the input once. Where it is
cut depends on the files alone and on how large a chunk should be, not on who scores it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sparkinfer.rows.reading import Piece


@dataclass(frozen=True)
class RowGroups:
    """The row groups of one Parquet file.

    Attributes:
        path: of the file, below the input's folder.
        rows: rows of each row group.
        text_bytes: size of each row group's text column, as Parquet encodes it before compression.
    """

    path: str
    rows: tuple[int, ...]
    text_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """What is scored, published and recorded as one.

    Attributes:
        number: counts the chunks of an output, from 0.
        pieces: where its rows are.
    """

    number: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def name(self) -> str:
        """The number as it stands in the names of files, which then sort by it."""
        return f"{self.number:08d}"


@dataclass(frozen=True)
class ChunkLimits:
    """How large a chunk becomes unless a single row group is larger.

    Attributes:
        rows: most rows.
        text_bytes: most bytes of text.
    """

    rows: int
    text_bytes: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.text_bytes < 1:
            raise ValueError(f"{self}: expected limits of at least 1")


DEFAULT_LIMITS = {
    "cpu": ChunkLimits(rows=1 << 16, text_bytes=8 << 20),
    "cuda": ChunkLimits(rows=1 << 20, text_bytes=256 << 20),
}
"""By what the model runs on: some minutes of work for a few workers. A chunk must be small for
what a crash costs, and large for what its start and its end cost."""


def cut_chunks(
    files: Iterable[RowGroups], limits: ChunkLimits, first_number: int = 0
) -> tuple[Chunk, ...]:
    """Returns chunks that together hold each row group with rows once, in order.

    A chunk ends before the row group that would take it over a limit. An input without rows is
    one chunk without pieces, so that its output has columns all the same.

    Args:
        files: in the order in which they are read.
        limits: how large a chunk becomes.
        first_number: number of the first chunk.
    """
    chunks: list[Chunk] = []
    for pieces in _cut(files, limits):
        chunks.append(Chunk(first_number + len(chunks), pieces))
    return tuple(chunks) or (Chunk(first_number, ()),)


def _cut(files: Iterable[RowGroups], limits: ChunkLimits) -> Iterator[tuple[Piece, ...]]:
    pieces: list[Piece] = []
    rows = text_bytes = 0
    for file in files:
        for index, (more_rows, more_bytes) in enumerate(
            zip(file.rows, file.text_bytes, strict=True)
        ):
            if more_rows == 0:
                continue
            too_large = rows + more_rows > limits.rows or (
                text_bytes + more_bytes > limits.text_bytes
            )
            if pieces and too_large:
                yield tuple(pieces)
                pieces, rows, text_bytes = [], 0, 0
            _extend(pieces, Piece(file.path, index, 1, more_rows))
            rows += more_rows
            text_bytes += more_bytes
    if pieces:
        yield tuple(pieces)


def _extend(pieces: list[Piece], piece: Piece) -> None:
    """Adds a row group to the pieces, to the last of them if it follows on it."""
    last = pieces[-1] if pieces else None
    if last and last.path == piece.path and last.first + last.count == piece.first:
        pieces[-1] = Piece(last.path, last.first, last.count + 1, last.rows + piece.rows)
    else:
        pieces.append(piece)
