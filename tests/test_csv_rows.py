"""CSV: rows as they were written, or an error that names file and line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.exceptions import InputError
from sparkinfer.files import text
from sparkinfer.files.csv_rows import CsvFile
from sparkinfer.option_groups import CsvConfig


def rows_in(path: Path, content: str | bytes, **options: Any) -> list[dict[str, str | None]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    file = CsvFile(str(path), CsvConfig(**options))
    batches = file.batches(file.schema().names)
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


def test_fields_are_as_they_were_written(path: Path) -> None:
    content = 'id,text\n1,"a ""b"", c"\n2,"two\r\nlines"\n3,a 5" screen\n\n 4 , x\n5,\n6,""\n'
    assert rows_in(path, content) == [
        {"id": "1", "text": 'a "b", c'},
        {"id": "2", "text": "two\r\nlines"},
        {"id": "3", "text": 'a 5" screen'},
        {"id": " 4 ", "text": " x"},
        {"id": "5", "text": None},
        {"id": "6", "text": ""},
    ]


@given(
    rows=st.lists(
        st.lists(st.text(alphabet='ab",\n\r \\\té', max_size=5), min_size=2, max_size=2),
        max_size=20,
    ),
    options=st.sampled_from([{}, {"delimiter": ";"}, {"quote": "'"}, {"delimiter": "\t"}]),
)
def test_what_the_standard_library_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], options: dict[str, str]
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(
        text,
        delimiter=options.get("delimiter", ","),
        quotechar=options.get("quote", '"'),
        quoting=csv.QUOTE_ALL,
    )
    writer.writerows([["id", "text"], *rows])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    found = rows_in(path, text.getvalue(), **options)
    assert [list(row.values()) for row in found] == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,good\n2,good, but slow\n", "line 3: fields: 3, in the header: 2 .id, text."),
        ("id,text\n1,good\n2\n", "line 3: fields: 1, in the header: 2"),
        ('id,text\n1,"a\nb"\n2,"open\n3,c\n', "line 4: a quote that opens in this row is never"),
        ('id,text\n1,"good" film\n', "line 2: there is text between a closing quote"),
        ("\n\n", "line 1: there is no header line"),
        (b"id,text\n1,good\n2,caf\xe9\n", "line 3, is not valid UTF-8.*csv.encoding=latin-1"),
        (b"id,text\n1,caf\xc3", "line 2, is not valid UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=f"a.csv', {message}"):
        rows_in(path, content)


def test_backslashes_escape_quotes_and_backslashes_alone(path: Path) -> None:
    content = (
        'id,text\n1,"say \\"hi\\", then"\n2,C:\\new\n3,"ends with \\\\"\n4,"a\\b"\n5,x \\"y\\"\n'
        '6,"C:\\\\a, b"\n7,\\\\host\\a\n'
    )
    found = rows_in(path, content, escape="\\")
    texts = [
        'say "hi", then',
        "C:\\new",
        "ends with \\",
        "a\\b",
        'x "y"',
        "C:\\a, b",
        "\\\\host\\a",
    ]
    assert [row["text"] for row in found] == texts


@given(
    rows=st.lists(
        st.lists(st.text(alphabet='ab",\n \\é', max_size=6), min_size=2, max_size=2), max_size=20
    )
)
def test_what_spark_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    def written(value: str) -> str:
        if value and not re.search('[",\n]', value):
            return value
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = "".join(",".join(map(written, row)) + "\n" for row in [["x", "y"], *rows])
    found = rows_in(tmp_path_factory.mktemp("csv") / "a.csv", text, escape="\\")
    assert [list(row.values()) for row in found] == rows


def test_a_null_character_is_no_escaped_quote(path: Path) -> None:
    assert rows_in(path, 'id\n"a\x00\\"b"\n', escape="\\") == [{"id": 'a\x00"b'}]


def test_the_dialect_can_be_given(path: Path) -> None:
    assert rows_in(path, "a;b\n1;'x;y'\n", delimiter=";", quote="'") == [{"a": "1", "b": "x;y"}]
    assert rows_in(path, 'a\tb\n1\t"x\n', delimiter=r"\t", quote="") == [{"a": "1", "b": '"x'}]
    assert rows_in(path, "1,x\n2,y\n", header=False) == [
        {"_c0": "1", "_c1": "x"},
        {"_c0": "2", "_c1": "y"},
    ]
    assert rows_in(path, 'a,b\nNA,"NA"\n,\n', null="NA") == [
        {"a": None, "b": "NA"},
        {"a": None, "b": None},
    ]


def test_a_file_of_tabs_is_told_by_its_name(tmp_path: Path) -> None:
    assert rows_in(tmp_path / "a.tsv", "a\tb\n1,5\t2\n") == [{"a": "1,5", "b": "2"}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(path: Path, encoding: str) -> None:
    assert rows_in(path, "id,text\n1,é\n".encode(encoding)) == [{"id": "1", "text": "é"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16", "gb18030"])
def test_a_byte_order_mark_is_no_part_of_a_name_if_the_encoding_is_given(
    path: Path, encoding: str
) -> None:
    content = ("" if encoding in ("utf-8-sig", "utf-16") else "\ufeff") + '"id",text\n1,é\n'
    rows = rows_in(path, content.encode(encoding), encoding=encoding)
    assert rows == [{"id": "1", "text": "é"}]


def test_an_encoding_can_be_given(path: Path) -> None:
    content = "id,text\n1,é\n".encode("latin-1")
    assert rows_in(path, content, encoding="latin-1") == [{"id": "1", "text": "é"}]


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress)])
def test_compressed_files_are_read(tmp_path: Path, suffix: str, compress: Any) -> None:
    path = tmp_path / f"a.csv.{suffix}"
    assert rows_in(path, compress(b"id,text\n1,a\n")) == [{"id": "1", "text": "a"}]


def test_a_damaged_compressed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a.csv.gz' cannot be read"):
        rows_in(tmp_path / "a.csv.gz", gzip.compress(b"id,text\n1,a\n" * 99)[:-20])


def test_a_header_without_a_name_is_called_as_spark_calls_it(path: Path) -> None:
    assert rows_in(path, ",text\n1,a\n") == [{"_c0": "1", "text": "a"}]


def test_columns_are_read_by_name_in_the_order_asked_for(path: Path) -> None:
    path.write_text("id,text\n1,a\n")
    [batch] = CsvFile(str(path), CsvConfig()).batches(["text"])
    assert batch.schema == pa.schema([("text", pa.string())])


def test_batches_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BATCH_ROWS", 10)
    monkeypatch.setattr(text, "BATCH_CHARACTERS", 100)
    path.write_text("text\n" + "a\n" * 25 + "b" * 60 + "\n" + "c" * 60 + "\n" + "d" * 500 + "\n")
    batches = list(CsvFile(str(path), CsvConfig()).batches(["text"]))
    assert [batch.num_rows for batch in batches] == [10, 10, 6, 1, 1]


def test_a_field_may_be_long(path: Path) -> None:
    [row] = rows_in(path, f'text\n"{"a" * 3_000_000}"\n')
    assert len(row["text"] or "") == 3_000_000
