from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import InputError
from sparkinfer.plan.snapshot import (
    InputFile,
    differences,
    input_root,
    list_files,
    read_row_groups,
)
from sparkinfer.rows.reading import InputFolders


def write(path: Path, rows: int = 10, row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": ["a" * 100 + str(i) for i in range(rows)], "id": range(rows)})
    pq.write_table(table, path, row_group_size=row_group_size, use_dictionary=False)
    return path


def test_the_files_of_a_folder_are_found_as_spark_finds_them(tmp_path: Path) -> None:
    for name in ["b.parquet", "a", "day=1/c.parquet", "_x=1/d.parquet"]:
        write(tmp_path / name)
    for name in ["_SUCCESS", ".a.crc", "_sparkinfer/e.parquet", ".hidden/f.parquet"]:
        write(tmp_path / name)
    names = [file.name for file in list_files(str(tmp_path))]
    assert names == ["_x=1/d.parquet", "a", "b.parquet", "day=1/c.parquet"]


def test_a_single_file_is_found_by_its_own_path(tmp_path: Path) -> None:
    path = str(write(tmp_path / "_a.parquet"))
    files = list_files(path)
    assert [file.name for file in files] == ["_a.parquet"]
    assert input_root(path) == input_root(str(tmp_path)) == str(tmp_path)


def test_the_folder_of_a_file_without_one_is_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert input_root("a.parquet") == "."


def test_a_file_that_is_written_anew_has_another_version(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    before = list_files(str(tmp_path))
    assert list_files(str(tmp_path)) == before
    os.utime(path, ns=(1, 1))
    now = list_files(str(tmp_path))
    assert [file.size for file in now] == [file.size for file in before]
    assert now != before


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


def test_the_folder_of_a_delta_table_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    (tmp_path / "_delta_log").mkdir()
    with pytest.raises(InputError, match="Delta table.*give the table's name"):
        list_files(str(tmp_path))
