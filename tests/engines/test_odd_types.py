"""A table of odd column types, carried alike by every engine and read alike by Arrow and Spark."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import InputError
from sparkinfer.files.columns import type_name
from tests.engines.conftest import Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

US, UTC = pa.timestamp("us"), pa.timestamp("us", "UTC")
DAYS = [
    datetime.date(1, 1, 1),
    datetime.date(1582, 10, 4),
    datetime.date(1899, 12, 31),
    datetime.date(9999, 12, 31),
]
TIMES = [
    datetime.datetime(1, 1, 1, 0, 0, 0, 1),
    datetime.datetime(1500, 2, 28, 23, 59, 59, 999999),
    datetime.datetime(1899, 12, 31, 12),
    datetime.datetime(9999, 12, 31, 23, 59, 59, 999999),
]
INSTANTS = [one.replace(tzinfo=datetime.timezone.utc) for one in TIMES]

ODD: dict[str, tuple[pa.Array, pa.DataType, list[Any]]] = {
    "day": (pa.array(DAYS), pa.date32(), DAYS),
    "day64": (pa.array(DAYS[2:] * 2, pa.date64()), pa.date32(), DAYS[2:] * 2),
    "time": (pa.array(TIMES, US), US, TIMES),
    "instant": (pa.array(INSTANTS, pa.timestamp("us", "Europe/Berlin")), UTC, INSTANTS),
    "ns": (
        pa.array([1_000, -1, 0, None], pa.timestamp("ns", "UTC")),
        UTC,
        [
            datetime.datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=datetime.timezone.utc),
            datetime.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=datetime.timezone.utc),
            datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc),
            None,
        ],
    ),
    "u64": (
        pa.array([0, 2**64 - 1, 1, None], pa.uint64()),
        pa.decimal128(20, 0),
        [Decimal(0), Decimal(2**64 - 1), Decimal(1), None],
    ),
    "u32": (pa.array([0, 2**32 - 1, 1, None], pa.uint32()), pa.int64(), [0, 2**32 - 1, 1, None]),
    "u8": (pa.array([0, 255, 1, None], pa.uint8()), pa.int16(), [0, 255, 1, None]),
    "none": (pa.nulls(4), pa.string(), [None] * 4),
    "word": (pa.array(["a", None, "", "a"]).dictionary_encode(), pa.string(), ["a", None, "", "a"]),
    "large": (pa.array(["é", None, "", "x"], pa.large_string()), pa.string(), ["é", None, "", "x"]),
    "blob": (pa.array([b"\x00\xff", None, b"", b"1"]), pa.binary(), [b"\x00\xff", None, b"", b"1"]),
    "fixed": (pa.array([b"ab", None] * 2, pa.binary(2)), pa.binary(), [b"ab", None] * 2),
    "price": (
        pa.array([Decimal("1.25"), None, Decimal("-9.99"), Decimal(0)], pa.decimal128(38, 2)),
        pa.decimal128(38, 2),
        [Decimal("1.25"), None, Decimal("-9.99"), Decimal("0.00")],
    ),
    "half": (
        pa.array([0.5, None, 1.5, 0.0], pa.float32()).cast(pa.float32()),
        pa.float32(),
        [0.5, None, 1.5, 0.0],
    ),
    "pair": (
        pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}, {"a": 2, "b": []}]),
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        [{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}, {"a": 2, "b": []}],
    ),
    "map": (
        pa.array([[("k", 1)], None, [], [("x", None)]], pa.map_(pa.string(), pa.int32())),
        pa.map_(pa.string(), pa.int32()),
        [[("k", 1)], None, [], [("x", None)]],
    ),
    "long list": (
        pa.array([[1], None, [], [None]], pa.large_list(pa.int32())),
        pa.list_(pa.int32()),
        [[1], None, [], [None]],
    ),
}


def odd_table() -> pa.Table:
    columns = {name: column for name, (column, _, _) in ODD.items()}
    return pa.table({"id": range(4), "text": ["good", "bad", "fine", "red"], **columns})


def test_odd_types_come_out_as_they_went_in(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(odd_table(), tmp_path / "in.parquet")
    result, found = run(str(tmp_path / "in.parquet"))
    assert (result.rows, result.error_rows) == (4, 0)
    for name, (_, kind, values) in ODD.items():
        assert found[name].to_pylist() == values, name
        assert type_name(found.schema.field(name).type) == type_name(kind), name
    assert "column 'ns': 1 timestamps are cut to microseconds" in caplog.text
    for path in (tmp_path / "out").glob("*.parquet"):
        stored = pq.ParquetFile(path).schema
        kinds = {stored.column(index).physical_type for index in range(len(stored))}
        assert "INT96" not in kinds


@pytest.mark.spark
def test_spark_reads_the_output_as_arrow_does(
    run: Run, tmp_path: Path, spark: SparkSession
) -> None:
    table = odd_table().select(["id", "text", "day", "time", "instant", "u64", "none"])
    pq.write_table(table, tmp_path / "in.parquet")
    before = {name: spark.conf.get(name, None) for name in SETTINGS}
    run(str(tmp_path / "in.parquet"))
    assert {name: spark.conf.get(name, None) for name in SETTINGS} == before
    rows = (
        spark.read.parquet(str(tmp_path / "out"))
        .orderBy("id")
        .selectExpr(
            "unix_date(day) as day",
            "cast(time as string) as time",
            "unix_micros(instant) as instant",
            "u64",
            "none",
        )
        .collect()
    )
    epoch = datetime.date(1970, 1, 1)
    assert [row.day for row in rows] == [(one - epoch).days for one in DAYS]
    assert [row.time for row in rows][1:3] == ["1500-02-28 23:59:59.999999", "1899-12-31 12:00:00"]
    assert [row.instant for row in rows] == pa.array(INSTANTS, UTC).cast(pa.int64()).to_pylist()
    assert [row.u64 for row in rows] == ODD["u64"][2]
    assert [row.none for row in rows] == [None] * 4


SETTINGS = ("spark.sql.parquet.outputTimestampType", "spark.sql.parquet.datetimeRebaseModeInWrite")


@pytest.mark.parametrize(
    "column", [pa.array([1, 2], pa.time64("us")), pa.array([1, 2], pa.duration("s"))]
)
def test_what_cannot_be_carried_is_refused_and_can_be_left_out(
    run: Run, tmp_path: Path, column: pa.Array
) -> None:
    table = pa.table({"id": [0, 1], "text": ["good", "bad"], "odd": column})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputError, match="column 'odd' has type .*--carry-cols"):
        run(str(tmp_path / "in.parquet"))
    assert not (tmp_path / "out").exists()
    result, found = run(str(tmp_path / "in.parquet"), carry_cols=("id",))
    assert (result.rows, found.column_names[0]) == (2, "id")


def test_files_that_differ_are_read_alike(run: Run, tmp_path: Path) -> None:
    struct = pa.array([{"b": "x", "a": 1}])
    first = {"id": [0], "text": ["good"], "n": [1], "note": pa.nulls(1), "pair": [{"a": 2}]}
    second = {"NOTE": ["é"], "n": [1.5], "pair": struct, "text": ["bad"], "id": [1], "new": [True]}
    folder = tmp_path / "in"
    for day, columns in (("2024-01-01", first), ("__HIVE_DEFAULT_PARTITION__", second)):
        (folder / f"day={day}" / "code=0%2F1").mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / f"day={day}" / "code=0%2F1" / "a.parquet")
    _, found = run(str(folder))
    assert found.drop_columns(found.column_names[8:]).to_pylist() == [
        {
            "id": 0,
            "text": "good",
            "n": 1.0,
            "note": None,
            "pair": {"a": 2, "b": None},
            "new": None,
            "day": datetime.date(2024, 1, 1),
            "code": "0/1",
        },
        {
            "id": 1,
            "text": "bad",
            "n": 1.5,
            "note": "é",
            "pair": {"a": 1, "b": "x"},
            "new": True,
            "day": None,
            "code": "0/1",
        },
    ]


def test_a_text_that_is_not_utf_8_costs_its_own_row(run: Run, tmp_path: Path) -> None:
    spoiled = [b"good", b"caf\xe9 good", None, b"bad"] * 3
    text = pa.array(spoiled, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": range(12), "text": text}), tmp_path / "in.parquet")
    result, found = run(str(tmp_path / "in.parquet"), chunks={"target_rows": 8})
    reason = "text is not valid UTF-8 (byte 0xe9 at 3)"
    assert found["error"].to_pylist() == [None, reason, "text is null", None] * 3
    assert result.error_rows == 6
    assert found["text"].combine_chunks().view(pa.binary()).to_pylist() == spoiled


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("csv", ["id,text\n0,good\n", "text,id,more\nbad,1,x\n"]),
        ("jsonl", ['{"id": "0", "text": "good"}\n', '[{"more": "x", "text": "bad", "id": "1"}]']),
    ],
)
def test_text_files_are_matched_by_name(
    run: Run, tmp_path: Path, name: str, contents: list[str]
) -> None:
    for index, content in enumerate(contents):
        (tmp_path / f"{index} [a].{name}").write_text(content)
    _, found = run([str(tmp_path / f"0 [a].{name}"), str(tmp_path / f"1*.{name}")])
    assert found.select(["id", "text", "more"]).to_pylist() == [
        {"id": "0", "text": "good", "more": None},
        {"id": "1", "text": "bad", "more": "x"},
    ]


def test_a_csv_file_without_the_header_of_the_others_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n0,good\n")
    (tmp_path / "b.csv").write_text("1,bad\n2,fine\n")
    with pytest.raises(InputError, match="b.csv' has none of the columns of .*a.csv', but .*'bad'"):
        run([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"id,text\n1,good\n2,good, but slow\n"),
        ("a.csv", b'id,text\n1,good\n2,"open\n'),
        ("a.csv", b"id,text\n1,good\n2,caf\xe9\n"),
        ("a.jsonl", b'{"id": 1, "text": "good"}\n\n{"id": 2,'),
    ],
)
def test_a_broken_row_is_named_before_anything_is_scored(
    run: Run, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}', line 3"):
        run(str(tmp_path / name))
    assert not list((tmp_path / "out").glob("*.parquet"))
