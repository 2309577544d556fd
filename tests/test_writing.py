from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.metrics.measure import Measure
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.writing import ScoredWriter

SCORED = pa.schema([("n_tokens", pa.int32()), ("truncated", pa.bool_()), ("error", pa.string())])
ROWS = 5000

NUMBERS = range(ROWS)
CARRIED = pa.table(
    {
        "own": [f"text {number}" for number in NUMBERS],
        "digest": [hashlib.sha256(str(number).encode()).hexdigest() for number in NUMBERS],
        "digest.raw": [hashlib.sha256(str(number).encode()).digest() for number in NUMBERS],
        "kind": [f"kind {number % 7}" for number in NUMBERS],
        "share": [number / 7 for number in NUMBERS],
        "vector": pa.array([[number / 7] * 3 for number in NUMBERS], pa.list_(pa.float32())),
        "tags": [["a", f"b{number % 3}"] for number in NUMBERS],
        "a.b": [f"x{number % 2}" for number in NUMBERS],
        "pair": [{"a": {"b": number % 2}} for number in NUMBERS],
        "day": pa.array([number % 9 for number in NUMBERS], pa.int32()).cast(pa.date32()),
        "nothing": pa.nulls(ROWS, pa.string()),
    }
)


@pytest.fixture
def file(tmp_path: Path) -> pq.ParquetFile:
    columns = Columns(CARRIED.schema, pa.schema([]), SCORED)
    scored = SCORED.empty_table().from_pylist([{"n_tokens": 2}] * ROWS, schema=SCORED)
    table = pa.Table.from_arrays([*CARRIED.columns, *scored.columns], schema=columns.output)
    writer = ScoredWriter(str(tmp_path), columns, Measure(None, None, "", (), ()))
    writer.write_tables("a.parquet", [table.slice(0, 2000), table.slice(2000)])
    return pq.ParquetFile(tmp_path / "a.parquet")


def stored(file: pq.ParquetFile) -> Iterator[dict[str, pq.ColumnChunkMetaData]]:
    """Yields how each row group's columns are stored, by their paths."""
    for group in range(file.num_row_groups):
        columns = file.metadata.row_group(group)
        chunks = [columns.column(index) for index in range(columns.num_columns)]
        yield {chunk.path_in_schema: chunk for chunk in chunks}


def test_a_dictionary_is_written_where_values_repeat(file: pq.ParquetFile) -> None:
    for columns in stored(file):
        without = {name for name, chunk in columns.items() if not chunk.has_dictionary_page}
        assert without - {"truncated"} == {
            *("own", "digest", "digest.raw", "share", "vector.list.element")
        }


def test_what_does_not_get_smaller_is_not_compressed(file: pq.ParquetFile) -> None:
    for columns in stored(file):
        codecs = {name: chunk.compression for name, chunk in columns.items()}
        plain = {name for name, codec in codecs.items() if codec == "UNCOMPRESSED"}
        assert plain >= {"digest", "digest.raw"}
        assert {codecs[name] for name in ("own", "kind", "a.b", "n_tokens")} == {"SNAPPY"}


def test_what_is_written_is_what_is_read(file: pq.ParquetFile) -> None:
    assert file.read(CARRIED.column_names).equals(CARRIED)
