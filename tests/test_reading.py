from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.exceptions import JobError
from sparkinfer.rows.reading import ChunkReader, Piece, cut_rows


def rows_of(reader: ChunkReader, *pieces: Piece) -> list[dict[str, object]]:
    return pa.Table.from_batches(reader.read(pieces), reader.schema).to_pylist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = pa.table({"id": range(50), "text": [f"t{i}" for i in range(50)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    return tmp_path


SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


def test_the_row_groups_of_a_piece_are_read_and_no_others(folder: Path) -> None:
    reader = ChunkReader(str(folder), SCHEMA)
    rows = rows_of(reader, Piece("a.parquet", 3, 2, 20), Piece("a.parquet", 0, 1, 10))
    assert [row["id"] for row in rows] == [*range(30, 50), *range(10)]
    assert rows[0] == {"id": 30, "text": "t30"}


def test_columns_come_in_the_types_and_the_order_of_the_run(tmp_path: Path) -> None:
    instant = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)
    table = pa.table(
        {
            "Text": pa.array(["x", None]).dictionary_encode(),
            "at": pa.array([instant, None], pa.timestamp("ns", "UTC")),
            "n": pa.array([1, None], pa.int32()),
            "long": pa.array(["y", None], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    schema = pa.schema(
        [
            ("n", pa.int64()),
            ("text", pa.string()),
            ("at", pa.timestamp("us", "UTC")),
            ("long", pa.string()),
            ("absent", pa.float64()),
        ]
    )
    rows = rows_of(ChunkReader(str(tmp_path), schema), Piece("a.parquet", 0, 1, 2))
    assert rows == [
        {"n": 1, "text": "x", "at": instant, "long": "y", "absent": None},
        dict.fromkeys(schema.names),
    ]


def test_parts_of_the_path_are_columns(tmp_path: Path) -> None:
    names = ["day=2024-01-02/kind=a%20b", "day=2024-01-03/kind=__HIVE_DEFAULT_PARTITION__"]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        pq.write_table(pa.table({"text": ["x"]}), tmp_path / name / "f.parquet")
    schema = pa.schema([("text", pa.string()), ("day", pa.date32()), ("kind", pa.string())])
    reader = ChunkReader(str(tmp_path), schema)
    rows = rows_of(reader, *(Piece(f"{name}/f.parquet", 0, 1, 1) for name in names))
    assert [(row["day"], row["kind"]) for row in rows] == [
        (datetime.date(2024, 1, 2), "a b"),
        (datetime.date(2024, 1, 3), None),
    ]


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    with pytest.raises(JobError, match="b.parquet' cannot be read in row groups 1 to 2"):
        rows_of(ChunkReader(str(folder), SCHEMA), Piece("b.parquet", 1, 2, 20))


def test_a_file_that_holds_other_rows_than_it_did_is_named(folder: Path) -> None:
    with pytest.raises(JobError, match="a.parquet' holds 10 rows in row groups 1 to 1.*held 12"):
        rows_of(ChunkReader(str(folder), SCHEMA), Piece("a.parquet", 1, 1, 12))


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 40), st.integers(0, 40) | st.none())
def test_a_part_of_the_rows_is_cut_out_over_batches(
    sizes: list[int], first: int, count: int | None
) -> None:
    values = list(range(sum(sizes)))

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for size in sizes:
            yield pa.RecordBatch.from_pydict(
                {"n": pa.array(values[start : start + size], pa.int64())}
            )
            start += size

    part = None if count is None else (first, count)
    found = [n for batch in cut_rows(batches(), part) for n in batch.column(0).to_pylist()]
    assert found == (values if count is None else values[first : first + count])
