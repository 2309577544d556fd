from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.rows import kept_file, reading
from sparkinfer.rows.reading import ChunkReader, InputFolders, Piece

SCHEMA = pa.schema([("id", pa.int64())])
GROUP = 100


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups whose decoding was begun, from their first row on."""
    groups: list[int] = []
    read_batches = reading.read_batches

    def noting(file: Any, wanted: Any, names: Any, *limits: int) -> Iterator[pa.RecordBatch]:
        groups.extend(wanted)
        return read_batches(file, wanted, names, *limits)

    monkeypatch.setattr(reading, "read_batches", noting)
    monkeypatch.setattr(reading, "READ_ROWS", 7)
    return groups


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write(tmp_path, range(3 * GROUP))
    yield tmp_path
    while kept_file._kept:
        kept_file._kept.pop().close()


def write(folder: Path, ids: range, name: str = "a.parquet") -> None:
    pq.write_table(pa.table({"id": ids}, SCHEMA), folder / "new", row_group_size=GROUP)
    (folder / "new").replace(folder / name)


def read(folder: Path, first: int, end: int, name: str = "a.parquet") -> list[int]:
    """Returns some of the rows of the first row groups, which are a row group each."""
    start = first // GROUP
    count = -(-end // GROUP) - start
    before = first - start * GROUP
    piece = Piece(name, start, count, end - first, before, count * GROUP - before - end + first)
    batches = ChunkReader(InputFolders(str(folder)), SCHEMA).read([piece])
    return [row for batch in batches for row in batch.column(0).to_pylist()]


def test_ranges_that_follow_one_another_decode_a_row_group_once(
    folder: Path, begun: list[int]
) -> None:
    assert read(folder, 0, 10) == list(range(10))
    assert read(folder, 10, 30) == list(range(10, 30))
    assert read(folder, 55, 60) == list(range(55, 60))
    assert begun == [0]
    assert read(folder, 60, 130) == list(range(60, 130))
    assert read(folder, 130, 140) == list(range(130, 140))
    assert begun == [0, 1]


def test_rows_that_were_passed_are_read_from_the_start(folder: Path, begun: list[int]) -> None:
    assert read(folder, 40, 50) == list(range(40, 50))
    assert read(folder, 49, 60) == list(range(49, 60))
    assert begun == [0, 0]


def test_a_file_that_was_written_again_is_opened_again(folder: Path) -> None:
    read(folder, 0, 10)
    write(folder, range(1000, 1000 + 3 * GROUP))
    assert read(folder, 10, 20) == list(range(1010, 1020))


def test_one_file_is_kept_and_none_that_was_read_to_its_end(folder: Path, begun: list[int]) -> None:
    write(folder, range(GROUP), "b.parquet")
    read(folder, 0, 10)
    read(folder, 0, 10, "b.parquet")
    assert len(kept_file._kept) == 1
    read(folder, 10, GROUP, "b.parquet")
    assert not kept_file._kept
    read(folder, 10, 20)
    assert begun == [0, 0, 0]


def test_a_file_is_closed_where_reading_it_was_broken_off(folder: Path) -> None:
    batches = ChunkReader(InputFolders(str(folder)), SCHEMA).read(
        [Piece("a.parquet", 0, 1, 9, 0, 91)]
    )
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not kept_file._kept


def test_a_forked_process_leaves_its_parents_place_alone(
    folder: Path, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(folder, 0, 10)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert read(folder, 10, 20) == list(range(10, 20))
    assert begun == [0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 299), st.integers(1, 120)), max_size=8), st.integers(1, 50)
)
def test_ranges_in_any_order_hold_their_rows(ranges: list[tuple[int, int]], most: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "READ_ROWS", most)
        write(Path(folder), range(3 * GROUP))
        for first, rows in ranges:
            end = min(first + rows, 3 * GROUP)
            assert read(Path(folder), first, end) == list(range(first, end))
