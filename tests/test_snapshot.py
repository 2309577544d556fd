from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import InputError
from sparkinfer.files.listing import InputFile
from sparkinfer.plan.snapshot import differences, read_row_groups
from sparkinfer.rows.reading import InputFolders


def write(path: Path, rows: int = 10, row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": ["a" * 100 + str(i) for i in range(rows)], "id": range(rows)})
    pq.write_table(table, path, row_group_size=row_group_size, use_dictionary=False)
    return path


def test_what_changed_is_listed_by_file() -> None:
    before = [InputFile("a", 1, "x"), InputFile("b", 1, "x"), InputFile("c", 1, "x")]
    now = [InputFile("a", 1, "x"), InputFile("b", 2, "y"), InputFile("d", 1, "x")]
    assert differences(before, now) == [
        "b changed (1 bytes of x then, 2 bytes of y now)",
        "c is gone",
        "d is new",
    ]
    assert differences(before, before) == []


def test_row_groups_are_read_with_the_size_of_the_text(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    folders = InputFolders(str(tmp_path))
    (found,) = read_row_groups(folders, ["a.parquet"], ["text"], ["text"])
    assert found.path == "a.parquet"
    assert found.rows == (4, 4, 2)
    assert found.text_bytes[0] > 400
    assert found.text_bytes[2] < found.text_bytes[0]
    assert found.read_bytes == found.text_bytes


def test_the_size_of_the_columns_that_are_read_counts_in_any_case_of_letters(
    tmp_path: Path,
) -> None:
    write(tmp_path / "day=1" / "a.parquet")
    folders = InputFolders(str(tmp_path))
    (found,) = read_row_groups(folders, ["day=1/a.parquet"], ["Text"], ["ID", "day", "Text", "no"])
    group = pq.read_metadata(tmp_path / "day=1" / "a.parquet").row_group(0)
    sizes = [group.column(index).total_uncompressed_size for index in (0, 1)]
    assert (found.text_bytes[0], found.read_bytes[0]) == (sizes[0], sum(sizes))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("not Parquet")
    with pytest.raises(InputError, match=f"{path}.*not readable as Parquet"):
        read_row_groups(InputFolders(str(tmp_path)), ["a.parquet"], ["text"], ["text"])
