"""Whether chunks hold each row of their files once."""

from __future__ import annotations

import pytest

from sparkinfer.plan.chunks import Chunk, ChunkLimits, RowGroups, cut_chunks
from sparkinfer.plan.coverage import coverage_problem
from sparkinfer.rows.reading import Piece

FILES = [
    RowGroups(path, rows=rows, text_bytes=(1,) * len(rows), read_bytes=(1,) * len(rows))
    for path, rows in {"a": (10, 25, 10), "b": (5,), "empty": ()}.items()
]


@pytest.mark.parametrize("rows", [1, 7, 10, 1000])
def test_chunks_as_they_are_cut_hold_each_row_once(rows: int) -> None:
    assert coverage_problem(cut_chunks(FILES, ChunkLimits(rows, 1 << 40)), FILES) is None


def whole(path: str, first: int, count: int, rows: int, before: int = 0, after: int = 0) -> Chunk:
    return Chunk(0, (Piece(path, first, count, rows, before, after),))


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([whole("a", 0, 2, 35), whole("b", 0, 1, 5)], "'a': rows from 35 are in no chunk"),
        ([whole("a", 1, 2, 35), whole("b", 0, 1, 5)], "'a': rows from 0 are in no chunk"),
        ([whole("a", 0, 3, 45)], "'b': rows from 0 are in no chunk"),
        (
            [whole("a", 0, 3, 45), whole("a", 2, 1, 10), whole("b", 0, 1, 5)],
            "'a': rows from 35 are in two chunks",
        ),
        ([whole("a", 0, 4, 45), whole("b", 0, 1, 5)], "'a': a chunk expects other row groups"),
        ([whole("a", 0, 3, 44), whole("b", 0, 1, 5)], "'a': a chunk expects other row groups"),
        (
            [whole("a", 0, 3, 20, 0, 25), whole("a", 0, 3, 24, 21, 0), whole("b", 0, 1, 5)],
            "'a': rows from 20 are in no chunk",
        ),
    ],
)
def test_rows_that_are_in_no_chunk_or_in_two_are_told(chunks: list[Chunk], problem: str) -> None:
    found = coverage_problem(chunks, FILES)
    assert found is not None
    assert found.startswith(problem)


def test_files_that_are_not_asked_about_are_passed_over() -> None:
    assert coverage_problem([whole("gone", 0, 1, 7), whole("b", 0, 1, 5)], FILES[1:]) is None
