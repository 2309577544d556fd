from __future__ import annotations

import datetime
import itertools
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import JobError
from sparkinfer.option_groups import CsvConfig
from sparkinfer.rows import copying
from sparkinfer.rows.copying import (
    GROUP_BYTES,
    CsvRows,
    FileCopier,
    FileRows,
    JsonRows,
    ParquetRows,
)
from sparkinfer.rows.reading import ChunkReader, InputFolders, Piece

ROWS = 10_000


def every(*values: Any) -> list[Any]:
    return list(itertools.islice(itertools.cycle(values), ROWS))


def table_of_many_kinds() -> pa.Table:
    instant = datetime.datetime(1960, 1, 2, 3, 4, 5, 678901)
    texts = [f"film {i} é" if i % 7 else None for i in range(ROWS)]
    return pa.table(
        {
            "id": pa.array(range(ROWS), pa.uint32()),
            "text": pa.array(texts, pa.string()),
            "long": pa.array(texts, pa.large_string()),
            "word": pa.array(every("a", None, "b", "")).dictionary_encode(),
            "data": pa.array(every(b"\x00\xff", None, b"")),
            "at": pa.array(every(instant, None), pa.timestamp("us")),
            "ns": pa.array(every(1_234_567_891, -5, None), pa.timestamp("ns", "Europe/Paris")),
            "day": pa.array(every(instant.date(), None)),
            "price": pa.array(every(Decimal("1.25"), None), pa.decimal128(12, 2)),
            "weight": pa.array(every(0.1, None, float("inf")), pa.float32()),
            "tags": pa.array(every(["a", None], [], None)),
            "pair": pa.array(every({"x": [1], "y": {"z": "q"}}, None, {"x": None, "y": None})),
            "map": pa.array(every([("k", 1)], None, []), pa.map_(pa.string(), pa.int16())),
            "none": pa.nulls(ROWS),
        }
    )


def copy(source: Path, folder: Path, *columns: str) -> list[Path]:
    copier = FileCopier(str(source.parent), str(folder), named(*columns), ParquetRows())
    return [folder / name for name in copier(source.name).names]


def named(*columns: str) -> pa.Schema:
    """Returns columns whose types do not matter."""
    return pa.schema([(name, pa.null()) for name in columns])


def row_groups_of(path: Path) -> list[tuple[int, int]]:
    """Returns the rows and the bytes of each row group."""
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return [(group.num_rows, group.total_byte_size) for group in groups]


def test_a_copy_has_the_values_and_types_of_the_file_in_small_row_groups(tmp_path: Path) -> None:
    table = table_of_many_kinds()
    source = tmp_path / "a.parquet"
    pq.write_table(table, source, row_group_size=9000)
    (path,) = copy(source, tmp_path / "copy", *table.column_names)
    copied, original = pq.ParquetFile(path), pq.ParquetFile(source)
    assert copied.schema_arrow.equals(original.schema_arrow)
    assert copied.read().equals(original.read())
    assert [rows for rows, _ in row_groups_of(path)] == [4096, 4096, 808, 1000]


def test_a_copy_has_the_named_columns_that_the_file_has_alone(tmp_path: Path) -> None:
    pq.write_table(table_of_many_kinds(), tmp_path / "a.parquet")
    (path,) = copy(tmp_path / "a.parquet", tmp_path / "copy", "TAGS", "absent", "text")
    assert sorted(pq.read_schema(path).names) == ["tags", "text"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.parquet", ParquetRows()),
        ("a.csv", CsvRows(CsvConfig())),
        ("a.json", JsonRows(pa.schema([("id", pa.int64())]))),
    ],
)
def test_rows_of_a_file_without_any_of_the_columns_are_copied(
    tmp_path: Path, name: str, rows: FileRows
) -> None:
    pq.write_table(pa.table({"id": [1, 2, 3]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("id\n1\n2\n3\n")
    (tmp_path / "a.json").write_text('{"id": 1}\n{"id": 2}\n{"id": 3}\n')
    copier = FileCopier(str(tmp_path), str(tmp_path / "copy"), named("text"), rows)
    (made,) = copier(name).names
    schema = pa.schema([("text", pa.string())])
    reader = ChunkReader(InputFolders(str(tmp_path / "copy")), schema)
    read = reader.read([Piece(made, 0, 1, rows=3)])
    assert pa.Table.from_batches(read, schema).to_pylist() == [{"text": None}] * 3


def test_row_groups_of_long_documents_have_few_rows(tmp_path: Path) -> None:
    texts = [os.urandom(n).hex() for n in [100] * 800 + [300_000] * 60 + [3_000_000, 10]]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (path,) = copy(tmp_path / "a.parquet", tmp_path / "copy", "text")
    groups = row_groups_of(path)
    assert all(rows == 1 or size <= 1.01 * GROUP_BYTES for rows, size in groups)
    assert len(groups) < 60
    assert pq.read_table(path)["text"].to_pylist() == texts


def test_many_row_groups_are_written_to_more_than_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "GROUPS_PER_FILE", 2)
    source = tmp_path / "day=1" / "a.parquet"
    source.parent.mkdir()
    pq.write_table(pa.table({"id": range(20_000)}), source)
    copier = FileCopier(str(tmp_path), str(tmp_path / "copy"), named("id"), ParquetRows())
    names = copier("day=1/a.parquet").names
    assert len(names) == 3
    assert all(name.startswith("day=1/") for name in names)
    found = [pq.read_table(tmp_path / "copy" / name, partitioning=None) for name in names]
    assert pa.concat_tables(found)["id"].to_pylist() == list(range(20_000))
    assert not set(names) & set(copier("day=1/a.parquet").names)


def test_timestamps_as_spark_writes_them_are_those_that_the_file_itself_gives(
    tmp_path: Path,
) -> None:
    times = [datetime.datetime(year, 1, 2, 3, 4, 5, 678901) for year in (1900, 1969, 2024)]
    table = pa.table({"at": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    assert pq.ParquetFile(tmp_path / "a.parquet").schema.column(0).physical_type == "INT96"
    (path,) = copy(tmp_path / "a.parquet", tmp_path / "copy", "at")
    schema = pa.schema([("at", pa.timestamp("us", "UTC"))])
    reader = ChunkReader(InputFolders(str(tmp_path), str(path.parent)), schema)
    piece = Piece("a.parquet", 0, 1, 3)
    copied = Piece(f"_copies/{path.name}", 0, 1, 3)
    one, other = ([*reader.read([each])] for each in (piece, copied))
    assert pa.Table.from_batches(one).equals(pa.Table.from_batches(other))


def test_a_file_without_rows_has_no_copies(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert copy(tmp_path / "a.parquet", tmp_path / "copy", "text") == []


def test_a_file_that_is_gone_or_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(JobError, match=f"{path}' cannot be copied.*FileNotFound.*repair it"):
        copy(path, tmp_path / "copy", "text")
    pq.write_table(pa.table({"text": [f"{i}" * 9 for i in range(20_000)]}), path)
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + 2000] = b"\xff" * 2000
    path.write_bytes(bytes(content))
    with pytest.raises(JobError, match=f"{path}' cannot be copied.*repair it"):
        copy(path, tmp_path / "copy", "text")
