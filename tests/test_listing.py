"""Which files an input is."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import InputError
from sparkinfer.files import lakes
from sparkinfer.files.formats import format_of
from sparkinfer.files.listing import find_files


def touch(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def names_at(*given: Path | str, kind: str = "auto") -> list[str]:
    return [file.name for file in find_files([str(one) for one in given], kind).files]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.snappy.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.csv", "csv"),
        ("a.csv.gz", "csv"),
        ("a.tsv.bz2", "csv"),
        ("a.jsonl", "json"),
        ("a.ndjson", "json"),
        ("a.json.xz", "json"),
        ("a.txt", None),
        ("parquet", None),
    ],
)
def test_the_name_of_a_file_tells_its_format(name: str, expected: str | None) -> None:
    assert format_of(name) == expected


def test_hidden_names_are_not_data_unless_they_name_a_value(tmp_path: Path) -> None:
    touch(tmp_path, "_x=1/b.csv", "_x=2/c.csv")
    touch(tmp_path, "_SUCCESS", ".a.csv.crc", "_sparkinfer/e.csv", ".hidden/f.csv")
    assert names_at(tmp_path) == ["_x=1/b.csv", "_x=2/c.csv"]


def test_a_single_file_is_found_by_its_own_path(tmp_path: Path) -> None:
    touch(tmp_path, "day=1/_a.csv", "day=1/b.csv")
    found = find_files([str(tmp_path / "day=1" / "_a.csv")])
    assert ([file.name for file in found.files], found.root) == (
        ["_a.csv"],
        str(tmp_path / "day=1"),
    )


def test_files_of_no_known_format_beside_others_are_not_data(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "LICENSE", "README.md", "b.csv.gz")
    assert names_at(tmp_path) == ["a.csv", "b.csv.gz"]


def test_files_of_several_formats_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "b.parquet", "c.txt")
    with pytest.raises(InputError, match=r"several formats \(a.csv, b.parquet\).*--input-format"):
        find_files([str(tmp_path)])
    assert names_at(tmp_path, kind="csv") == ["a.csv"]


def test_a_chosen_format_takes_the_files_whose_names_tell_none(tmp_path: Path) -> None:
    touch(tmp_path, "part-0", "part-1.txt")
    assert names_at(tmp_path, kind="csv") == ["part-0", "part-1.txt"]
    with pytest.raises(InputError, match="no file of a known format, but 'part-0', 'part-1.txt'"):
        find_files([str(tmp_path)])


def test_first_bytes_tell_a_format_where_names_do_not(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "p" / "part-0")
    touch(tmp_path / "j", "part-0", content=b'\n{"text": "a"}\n{"text": "b"}\n')
    touch(tmp_path / "c", "part-0", content=b"id,text\n1,{a}\n")
    assert find_files([str(tmp_path / "p")]).kind == "parquet"
    assert find_files([str(tmp_path / "j" / "part-0")]).kind == "json"
    with pytest.raises(InputError, match="no file of a known format"):
        find_files([str(tmp_path / "c" / "part-0")])


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    touch(tmp_path, "b.csv", content=b"")
    with pytest.raises(InputError, match="b.csv' is empty"):
        find_files([str(tmp_path)])


def test_only_subfolders_that_name_a_value_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "old/b.csv", "old/README.md")
    found = find_files([str(tmp_path)])
    assert [file.name for file in found.files] == ["a.csv"]
    assert found.left_out == ("old/b.csv",)
    (tmp_path / "a.csv").unlink()
    with pytest.raises(InputError, match="files only in subfolders.*such as .*/\\*/\\*"):
        find_files([str(tmp_path)])
    assert names_at(f"{tmp_path}/*/*") == ["old/b.csv"]


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no files"):
        find_files([str(tmp_path)])
    with pytest.raises(InputError, match="does not exist"):
        find_files([str(tmp_path / "no")])


def test_several_paths_and_patterns_are_named_from_their_common_folder(tmp_path: Path) -> None:
    touch(tmp_path, "day=1/a.csv", "day=2/b.csv", "day=3/c.csv")
    wanted = ["day=1/a.csv", "day=2/b.csv"]
    assert names_at(tmp_path / "day=1", tmp_path / "day=2") == wanted
    assert names_at(tmp_path / "day=1" / "a.csv", tmp_path / "day=2") == wanted
    assert names_at(f"{tmp_path}/day=[12]") == wanted
    assert names_at(f"{tmp_path}/day=*/[ab].csv") == wanted
    assert names_at(f"{tmp_path}/**/a.csv") == wanted[:1]


def test_a_file_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "b.csv")
    assert names_at(tmp_path / "a.csv", tmp_path / "*.csv") == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    "again", ["{0}/../in/a.csv", "{0}/x/..", "file://{0}/x/../a.csv", "{0}/x/../*"]
)
def test_a_file_that_is_given_twice_with_dots_is_read_once(tmp_path: Path, again: str) -> None:
    touch(tmp_path / "in", "a.csv", "x/y.txt")
    assert names_at(tmp_path / "in" / "a.csv", again.format(tmp_path / "in")) == ["a.csv"]


def test_dots_after_a_link_lead_to_where_its_target_is(tmp_path: Path) -> None:
    touch(tmp_path, "far/b.csv", "far/in/a.csv")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "in")
    assert find_files([f"{tmp_path}/link/../b.csv"]).root == str(tmp_path / "far")


def test_paths_on_several_file_systems_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    fsspec.filesystem("memory").pipe_file("/listed/b.csv", b"x")
    with pytest.raises(InputError, match="is on several file systems"):
        find_files([str(tmp_path), "memory://listed"])


@pytest.mark.parametrize("folder", ["a [1]", "x*y", "q?", "100%", "a#b", "é {1}"])
def test_a_path_that_exists_is_no_pattern(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}/a.csv", "x1y/b.csv", "a 1/c.csv")
    assert names_at(tmp_path / folder) == ["a.csv"]
    assert names_at(tmp_path / folder / "a.csv") == ["a.csv"]


def test_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.csv", "more/b.csv", content=b"four")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.csv").symlink_to(tmp_path / "data" / "a.csv")
    (tmp_path / "in" / "day=1").symlink_to(tmp_path / "more")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    found = find_files([str(tmp_path / "linked")])
    assert [(file.name, file.size) for file in found.files] == [("day=1/b.csv", 4), ("link.csv", 4)]
    assert names_at(tmp_path / "in" / "link.csv") == ["link.csv"]


def test_a_link_that_leads_nowhere_or_in_a_circle_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.csv", "b/x.csv")
    (tmp_path / "a" / "gone.csv").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b" / "day=1").symlink_to(tmp_path / "b")
    for name in "ab":
        with pytest.raises(InputError, match="cannot be listed"):
            find_files([str(tmp_path / name)])


def test_a_file_that_is_written_anew_has_another_version(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    before = find_files([str(tmp_path)])
    assert find_files([str(tmp_path)]) == before
    os.utime(tmp_path / "a.csv", ns=(1, 1))
    now = find_files([str(tmp_path)])
    assert [file.size for file in now.files] == [1]
    assert now != before


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "Delta"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
        ("metadata/version-hint.text", "Iceberg"),
    ],
)
@pytest.mark.parametrize("given", ["t", "t/day=1", "t/day=1/a.parquet", ".", "t/day=*"])
def test_parts_of_lake_tables_are_refused(tmp_path: Path, mark: str, kind: str, given: str) -> None:
    touch(tmp_path, "b.parquet", "t/day=1/a.parquet", f"t/{mark}")
    with pytest.raises(InputError, match=f"{tmp_path}/t.* a {kind} table.*give its name"):
        find_files([str(tmp_path / given)])


def test_a_folder_of_metadata_alone_is_no_lake_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "metadata/about.json")
    assert names_at(tmp_path) == ["a.csv"]


def test_a_compressed_file_counts_by_its_size_on_disk(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv.gz", content=gzip.compress(b"text\n" * 1000))
    [file] = find_files([str(tmp_path)]).files
    assert file.size < 1000


def test_a_folder_is_looked_into_for_a_lake_once_for_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *(f"day={day}/{number}.csv" for day in "12" for number in range(20)))
    looked = []
    monkeypatch.setattr(lakes, "exists", lambda path: bool(looked.append(path)))
    assert len(names_at(f"{tmp_path}/*/*.csv")) == 40
    assert len(looked) == len(set(looked))
