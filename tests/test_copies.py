from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.plan.chunks import DEFAULT_LIMITS, ChunkLimits, RowGroups
from sparkinfer.plan.copies import decoded_in_vain, should_copy
from sparkinfer.plan.plan import Workers


def file_of(rows: int, groups: int, row_bytes: int) -> RowGroups:
    """Returns a file with so many rows in each of its row groups."""
    sizes = (rows * row_bytes,) * groups
    return RowGroups("a", (rows,) * groups, sizes, sizes)


@given(st.integers(1, 60), st.integers(1, 20))
def test_what_is_decoded_in_vain_is_what_processes_skip(shares: int, processes: int) -> None:
    """Against processes that take the shares in turns and go on from one to their next."""
    ends = {share % processes: share + 1 for share in range(shares)}
    decoded = sum(ends.values()) / shares
    assert decoded_in_vain(shares, processes) == pytest.approx(decoded - 1)


@pytest.mark.parametrize(
    ("kind", "workers", "row_bytes", "expected"),
    [
        ("cpu", 1, 20_000, False),
        ("cpu", 4, 20_000, False),
        ("cpu", 8, 2_000, False),
        ("cpu", 8, 20_000, True),
        ("cpu", 64, 2_000, True),
        ("cpu", 64, 130, False),
        ("cuda", 8, 2_000, True),
        ("cuda", 8, 130, False),
        ("cuda", 64, 130, True),
    ],
)
def test_wide_row_groups_that_many_workers_share_are_copied(
    kind: str, workers: int, row_bytes: int, expected: bool
) -> None:
    file = file_of(1_000_000, 1, row_bytes)
    assert should_copy(file, DEFAULT_LIMITS[kind], Workers(kind, workers)) is expected


def test_few_workers_at_a_row_group_are_not_worth_a_copy() -> None:
    """Each would decode half of it in vain, which is a lot for wide rows, but a copy takes more."""
    limits = ChunkLimits(1_000, 1 << 62)
    assert not should_copy(file_of(1_000, 10, 1_000_000), limits, Workers("cpu", 64))


def test_a_row_group_of_one_share_is_read_in_place() -> None:
    many = Workers("cpu", 64)
    assert not should_copy(file_of(100, 10_000, 2_000), DEFAULT_LIMITS["cpu"], many)
    assert not should_copy(file_of(0, 1, 0), DEFAULT_LIMITS["cpu"], many)
