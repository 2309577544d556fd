from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.plan.chunks import (
    DEFAULT_LIMITS,
    Chunk,
    ChunkLimits,
    RowGroups,
    count_ranges,
    cut_chunks,
    placed_chunk,
)
from sparkinfer.rows.reading import Piece

ROW_GROUPS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 5000)), max_size=12)
FILES = st.lists(ROW_GROUPS, max_size=6).map(
    lambda files: [
        RowGroups(
            f"f{number}",
            tuple(rows for rows, _ in groups),
            tuple(size for _, size in groups),
            tuple(2 * size for _, size in groups),
        )
        for number, groups in enumerate(files)
    ]
)
LIMITS = st.builds(ChunkLimits, rows=st.integers(1, 900), text_bytes=st.integers(1, 9000))

Row = tuple[str, int, int]
"""A row's file, its row group and its place there."""


def rows_of(files: Iterable[RowGroups]) -> list[Row]:
    return [
        (file.path, group, row)
        for file in files
        for group, rows in enumerate(file.rows)
        for row in range(rows)
    ]


def rows_in(chunk: Chunk, files: Iterable[RowGroups]) -> list[Row]:
    by_path = {file.path: file for file in files}
    rows: list[Row] = []
    for piece in chunk.pieces:
        held = [
            (piece.path, group, row)
            for group in range(piece.first, piece.first + piece.count)
            for row in range(by_path[piece.path].rows[group])
        ]
        assert len(held) == piece.before + piece.rows + piece.after
        rows += held[piece.before : piece.before + piece.rows]
    return rows


def text_bytes(rows: Iterable[Row], files: Iterable[RowGroups]) -> Fraction:
    by_path = {file.path: file for file in files}
    return sum(
        (Fraction(by_path[p].text_bytes[group], by_path[p].rows[group]) for p, group, _ in rows),
        Fraction(0),
    )


@given(FILES, LIMITS)
def test_every_row_is_in_one_chunk_in_order(files: list[RowGroups], limits: ChunkLimits) -> None:
    chunks = cut_chunks(files, limits)
    assert [row for chunk in chunks for row in rows_in(chunk, files)] == rows_of(files)


@given(FILES, LIMITS)
def test_a_chunk_is_over_a_limit_only_by_the_bytes_of_a_single_row(
    files: list[RowGroups], limits: ChunkLimits
) -> None:
    for chunk in cut_chunks(files, limits):
        assert chunk.rows <= limits.rows
        assert chunk.rows <= 1 or text_bytes(rows_in(chunk, files), files) <= limits.text_bytes


@given(FILES, LIMITS)
def test_a_row_group_within_the_limits_is_not_cut(
    files: list[RowGroups], limits: ChunkLimits
) -> None:
    by_path = {file.path: file for file in files}
    for chunk in cut_chunks(files, limits):
        for piece in chunk.pieces:
            file = by_path[piece.path]
            for group, rest in [
                (piece.first, piece.before),
                (piece.first + piece.count - 1, piece.after),
            ]:
                fits = (
                    file.rows[group] <= limits.rows and file.text_bytes[group] <= limits.text_bytes
                )
                assert not (fits and rest)


@given(FILES, LIMITS)
def test_the_ranges_of_a_row_group_differ_by_one_row_at_most(
    files: list[RowGroups], limits: ChunkLimits
) -> None:
    sizes: dict[tuple[str, int], list[int]] = {}
    for chunk in cut_chunks(files, limits):
        for key, rows in itertools.groupby(rows_in(chunk, files), key=lambda row: row[:2]):
            sizes.setdefault(key, []).append(len(list(rows)))
    assert all(max(of_group) - min(of_group) <= 1 for of_group in sizes.values())


@given(FILES, LIMITS)
def test_two_chunks_that_follow_one_another_do_not_fit_into_one(
    files: list[RowGroups], limits: ChunkLimits
) -> None:
    for one, two in itertools.pairwise(cut_chunks(files, limits)):
        _, group, _ = rows_in(two, files)[0]
        added = [row for row in rows_in(two, files) if row[:2] == (two.pieces[0].path, group)]
        rows = [*rows_in(one, files), *added]
        # Of each range the bytes are rounded up.
        size = text_bytes(rows, files) + len(one.pieces) + sum(p.count for p in one.pieces) + 1
        assert len(rows) > limits.rows or size > limits.text_bytes


@given(FILES, LIMITS, st.integers(0, 10**6))
def test_chunks_are_numbered_on_and_their_names_sort_by_number(
    files: list[RowGroups], limits: ChunkLimits, first: int
) -> None:
    chunks = cut_chunks(files, limits, first)
    assert [chunk.number for chunk in chunks] == list(range(first, first + len(chunks)))
    assert sorted(chunk.name for chunk in chunks) == [chunk.name for chunk in chunks]


def groups_of(path: str, *rows: int) -> RowGroups:
    return RowGroups(path, rows, (1,) * len(rows), (1,) * len(rows))


def test_row_groups_of_a_file_that_follow_one_another_are_one_piece() -> None:
    (chunk,) = cut_chunks([groups_of("a", 10, 10, 0, 10), groups_of("b", 10)], ChunkLimits(99, 99))
    assert chunk.pieces == (Piece("a", 0, 2, 20), Piece("a", 3, 1, 10), Piece("b", 0, 1, 10))


def test_a_large_row_group_is_cut_evenly_and_its_ends_go_with_what_is_beside() -> None:
    chunks = cut_chunks([groups_of("a", 4, 25, 2, 3)], ChunkLimits(14, 99))
    assert [chunk.pieces for chunk in chunks] == [
        (Piece("a", 0, 1, 4),),
        (Piece("a", 1, 1, 12, before=0, after=13),),
        (Piece("a", 1, 1, 13, before=12, after=0),),
        (Piece("a", 2, 2, 5),),
    ]
    chunks = cut_chunks([groups_of("a", 4, 25, 1, 3)], ChunkLimits(17, 99))
    assert [chunk.pieces for chunk in chunks] == [
        (Piece("a", 0, 2, 16, before=0, after=13),),
        (Piece("a", 1, 3, 17, before=12, after=0),),
    ]


def test_a_row_group_is_cut_by_the_bytes_of_its_text_too() -> None:
    (file,) = [RowGroups("a", (100,), (1000,), (5000,))]
    chunks = cut_chunks([file], ChunkLimits(rows=1000, text_bytes=300))
    assert [chunk.rows for chunk in chunks] == [25, 25, 25, 25]


def test_a_million_rows_in_one_row_group_are_many_chunks() -> None:
    file = RowGroups("a", (1_000_000,), (100_000_000,), (100_000_000,))
    for kind, limits in DEFAULT_LIMITS.items():
        chunks = cut_chunks([file], limits)
        assert len(chunks) == {"cpu": 62, "cuda": 4}[kind]


@pytest.mark.parametrize(
    ("rows", "text_bytes", "ranges"),
    [(0, 0, 0), (1, 0, 1), (10, 100, 1), (11, 100, 2), (10, 101, 2), (2, 10_000, 2)],
)
def test_ranges_are_counted_by_both_limits(rows: int, text_bytes: int, ranges: int) -> None:
    assert count_ranges(rows, text_bytes, ChunkLimits(10, 100)) == ranges


def test_an_input_without_rows_is_one_chunk_without_pieces() -> None:
    assert cut_chunks([groups_of("a", 0)], ChunkLimits(9, 9), 4) == (Chunk(4, ()),)


@pytest.mark.parametrize(("rows", "text_bytes"), [(0, 5), (5, 0)])
def test_a_limit_of_nothing_is_refused(rows: int, text_bytes: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ChunkLimits(rows, text_bytes)


def places_of(pieces: Iterable[Piece]) -> list[tuple[int, int, int]]:
    return [(piece.chunk, piece.place, piece.rows) for piece in pieces]


def test_pieces_know_where_in_their_chunk_their_rows_are() -> None:
    files = [RowGroups("a", (10, 10, 10), (1, 1, 1), (1, 1, 1)), RowGroups("b", (10,), (1,), (1,))]
    first, second = cut_chunks(files, ChunkLimits(25, 100), first_number=3)
    assert places_of(first.pieces) == [(3, 0, 20)]
    assert places_of(second.pieces) == [(4, 0, 10), (4, 10, 10)]
    [_, other] = second.pieces
    assert places_of(other.cut(4)) == [(4, 10, 3), (4, 13, 3), (4, 16, 4)]
    assert places_of([other.beyond(7)]) == [(4, 17, 3)]


def test_where_rows_are_does_not_change_what_tells_a_chunk_from_others() -> None:
    plain = Chunk(0, (Piece("a", 0, 1, 10), Piece("b", 0, 1, 10)))
    assert placed_chunk(7, plain.pieces).digest == plain.digest
