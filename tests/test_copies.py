from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.plan.chunks import DEFAULT_LIMITS, ChunkLimits, RowGroups, cut_chunks
from sparkinfer.plan.copies import COPY_COST, should_copy
from sparkinfer.plan.plan import Workers

ONE = Workers("cpu", 1)


def file_of(rows: int, groups: int, row_bytes: int) -> RowGroups:
    """Returns a file with so many rows in each of its row groups."""
    sizes = (rows * row_bytes,) * groups
    return RowGroups("a", (rows,) * groups, sizes, sizes)


@pytest.mark.parametrize(
    ("kind", "rows", "row_bytes", "expected"),
    [
        ("cpu", 1_000_000, 70, False),
        ("cpu", 20_000_000, 70, True),
        ("cpu", 200_000, 200, False),
        ("cpu", 200_000, 2_000, True),
        ("cuda", 200_000, 2_000, False),
        ("cuda", 1_000_000, 70, False),
        ("cuda", 1_000_000, 2_000, True),
        ("cuda", 16_000_000, 70, True),
    ],
)
def test_files_of_one_row_group_that_is_large_are_copied(
    kind: str, rows: int, row_bytes: int, expected: bool
) -> None:
    assert (
        should_copy(file_of(rows, 1, row_bytes), DEFAULT_LIMITS[kind], Workers(kind, 1)) is expected
    )


@given(st.integers(0, 10**7), st.integers(1, 10), st.integers(0, 10**5), st.integers(1, 10**7))
def test_what_is_decoded_in_vain_decides(
    rows: int, groups: int, row_bytes: int, most_rows: int
) -> None:
    """Against the sum over the ranges themselves, and the time that scoring takes at 300 rows/s."""
    most_rows = max(most_rows, rows // 50)
    file = file_of(rows, groups, row_bytes)
    limits = ChunkLimits(most_rows, 1 << 62)
    before = sum(piece.before for chunk in cut_chunks([file], limits) for piece in chunk.pieces)
    share = before * row_bytes / 250e6 / (rows * groups / 300) if rows else 0
    if abs(share - 0.03) > 0.001 * share:
        is_worth_it = before > COPY_COST * rows * groups
        assert should_copy(file, limits, ONE) is (share > 0.03 and is_worth_it)


def test_whole_row_groups_are_read_in_place() -> None:
    assert not should_copy(file_of(1000, 10_000, 2_000), DEFAULT_LIMITS["cpu"], ONE)
    assert not should_copy(file_of(0, 1, 0), DEFAULT_LIMITS["cpu"], ONE)


def test_few_ranges_of_wide_rows_are_not_worth_a_copy() -> None:
    rows = RowGroups("a", (60_000,), (1_000_000,), (60_000_000_000,))
    assert not should_copy(rows, DEFAULT_LIMITS["cpu"], ONE)
    rows = RowGroups("a", (200_000,), (1_000_000,), (200_000_000_000,))
    assert should_copy(rows, DEFAULT_LIMITS["cpu"], ONE)


def test_wide_row_groups_that_many_workers_share_are_copied() -> None:
    wide, short = file_of(10_000, 10, 5_000), file_of(10_000, 10, 130)
    limits = ChunkLimits(10_000, 1 << 62)
    assert not should_copy(wide, limits, Workers("cpu", 8))
    assert should_copy(wide, limits, Workers("cpu", 64))
    assert not should_copy(short, limits, Workers("cpu", 64))
