"""What is read of a Parquet file to know it again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.sinks import footers
from sparkinfer.sinks.footers import BrokenFileError, Footer, read_footer


def write(path: Path, first: int = 0) -> Path:
    pq.write_table(pa.table({"id": range(first, first + 9)}), path)
    return path


def footer_of(path: Path) -> Footer:
    return read_footer(str(path), path.stat().st_size)


def test_it_is_read_whole_however_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet")
    found = footer_of(path)
    assert (found.rows, len(found.digest)) == (9, 16)
    monkeypatch.setattr(footers, "TAIL_BYTES", 8)
    assert footer_of(path) == found


def test_other_values_have_another_digest_and_the_same_have_the_same(tmp_path: Path) -> None:
    one, same, other = (
        write(tmp_path / f"{first}-{i}", first) for i, first in enumerate((0, 0, 1))
    )
    assert footer_of(one) == footer_of(same) != footer_of(other)


@pytest.mark.parametrize("end", [0, 1, 7, 8, 100, -1])
def test_a_file_that_is_cut_off_is_broken(tmp_path: Path, end: int) -> None:
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(BrokenFileError, match="not a complete Parquet file"):
        footer_of(path)


def test_a_file_that_is_not_there_is_told_from_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_footer(str(tmp_path / "a.parquet"), 100)
