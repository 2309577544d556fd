from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.plan.chunks import Chunk, ChunkLimits, RowGroups, cut_chunks
from sparkinfer.rows.reading import Piece

ROW_GROUPS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 5000)), max_size=12)
FILES = st.lists(ROW_GROUPS, max_size=6).map(
    lambda files: [
        RowGroups(f"f{number}", tuple(r for r, _ in groups), tuple(b for _, b in groups))
        for number, groups in enumerate(files)
    ]
)
LIMITS = st.builds(ChunkLimits, rows=st.integers(1, 900), text_bytes=st.integers(1, 9000))


def row_groups(chunk: Chunk) -> list[tuple[str, int]]:
    return [
        (piece.path, piece.first + offset)
        for piece in chunk.pieces
        for offset in range(piece.count)
    ]


@given(FILES, LIMITS)
def test_every_row_group_with_rows_is_in_one_chunk_in_order(
    files: list[RowGroups], limits: ChunkLimits
) -> None:
    chunks = cut_chunks(files, limits)
    held = [group for chunk in chunks for group in row_groups(chunk)]
    assert held == [
        (file.path, index) for file in files for index, rows in enumerate(file.rows) if rows
    ]
    assert sum(chunk.rows for chunk in chunks) == sum(sum(file.rows) for file in files)


@given(FILES, LIMITS)
def test_a_chunk_is_over_a_limit_only_by_a_single_row_group(
    files: list[RowGroups], limits: ChunkLimits
) -> None:
    sizes = {file.path: file for file in files}
    for chunk in cut_chunks(files, limits):
        groups = row_groups(chunk)
        size = sum(sizes[path].text_bytes[index] for path, index in groups)
        assert len(groups) <= 1 or (chunk.rows <= limits.rows and size <= limits.text_bytes)


@given(FILES, LIMITS)
def test_two_chunks_that_follow_one_another_do_not_fit_into_one(
    files: list[RowGroups], limits: ChunkLimits
) -> None:
    sizes = {file.path: file for file in files}
    chunks = cut_chunks(files, limits)
    for one, two in itertools.pairwise(chunks):
        path, index = row_groups(two)[0]
        size = sum(sizes[p].text_bytes[i] for p, i in [*row_groups(one), (path, index)])
        rows = one.rows + sizes[path].rows[index]
        assert rows > limits.rows or size > limits.text_bytes


@given(FILES, LIMITS, st.integers(0, 10**6))
def test_chunks_are_numbered_on_and_their_names_sort_by_number(
    files: list[RowGroups], limits: ChunkLimits, first: int
) -> None:
    chunks = cut_chunks(files, limits, first)
    assert [chunk.number for chunk in chunks] == list(range(first, first + len(chunks)))
    assert sorted(chunk.name for chunk in chunks) == [chunk.name for chunk in chunks]


def test_row_groups_of_a_file_that_follow_one_another_are_one_piece() -> None:
    files = [RowGroups("a", (10, 10, 0, 10), (1, 1, 0, 1)), RowGroups("b", (10,), (1,))]
    (chunk,) = cut_chunks(files, ChunkLimits(100, 100))
    assert chunk.pieces == (Piece("a", 0, 2, 20), Piece("a", 3, 1, 10), Piece("b", 0, 1, 10))


def test_an_input_without_rows_is_one_chunk_without_pieces() -> None:
    assert cut_chunks([RowGroups("a", (0,), (0,))], ChunkLimits(9, 9), 4) == (Chunk(4, ()),)


@pytest.mark.parametrize(("rows", "text_bytes"), [(0, 5), (5, 0)])
def test_a_limit_of_nothing_is_refused(rows: int, text_bytes: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ChunkLimits(rows, text_bytes)
