from __future__ import annotations

import datetime
import itertools
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.exceptions import JobError
from sparkinfer.files import parquet
from sparkinfer.files.parquet import TextSizes, open_parquet, text_sizes, whole_number_bounds
from sparkinfer.plan.chunks import placed_chunk
from sparkinfer.rows import reading
from sparkinfer.rows.reading import (
    READ_BYTES,
    ROW_ID,
    ChunkReader,
    InputFolders,
    Piece,
    column_places,
    encoded_bytes,
    halved,
    read_batches,
)


def rows_of(reader: ChunkReader, *pieces: Piece) -> list[dict[str, object]]:
    return pa.Table.from_batches(reader.read(pieces), reader.schema).to_pylist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = pa.table({"id": range(50), "text": [f"t{i}" for i in range(50)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    return tmp_path


SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


def test_the_row_groups_of_a_piece_are_read_and_no_others(folder: Path) -> None:
    reader = ChunkReader(InputFolders(str(folder)), SCHEMA)
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
    rows = rows_of(ChunkReader(InputFolders(str(tmp_path)), schema), Piece("a.parquet", 0, 1, 2))
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
    reader = ChunkReader(InputFolders(str(tmp_path)), schema)
    rows = rows_of(reader, *(Piece(f"{name}/f.parquet", 0, 1, 1) for name in names))
    assert [(row["day"], row["kind"]) for row in rows] == [
        (datetime.date(2024, 1, 2), "a b"),
        (datetime.date(2024, 1, 3), None),
    ]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(0, 60),
    st.integers(1, 100),
    st.integers(1, 50),
)
def test_a_range_holds_the_rows_of_the_whole_between_its_ends(
    sizes: list[int], before: int, rows: int, batch_rows: int
) -> None:
    """Row groups of these sizes are read from one row to another, in batches of this size."""
    before = min(before, sum(sizes) - 1)
    rows = min(rows, sum(sizes) - before)
    ends = list(itertools.accumulate(sizes))
    count = next(index for index, end in enumerate(ends, 1) if end >= before + rows)
    after = ends[count - 1] - before - rows
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "READ_ROWS", batch_rows)
        with pq.ParquetWriter(f"{folder}/a.parquet", SCHEMA) as writer:
            for size, end in zip(sizes, ends, strict=True):
                ids = range(end - size, end)
                writer.write_table(
                    pa.table({"id": ids, "text": [f"t{i}" for i in ids]}, SCHEMA),
                    row_group_size=size,
                )
        piece = Piece("a.parquet", 0, count, rows, before, after)
        batches = list(ChunkReader(InputFolders(folder), SCHEMA).read([piece]))
    found = [i for batch in batches for i in batch.column(0).to_pylist()]
    assert found == list(range(before, before + rows))
    assert max(batch.num_rows for batch in batches) <= batch_rows


def test_row_groups_before_a_piece_are_not_decoded(folder: Path) -> None:
    path = folder / "a.parquet"
    content = bytearray(path.read_bytes())
    end = pq.read_metadata(path).row_group(3).column(0).dictionary_page_offset
    content[4:end] = b"\xff" * (end - 4)
    path.write_bytes(bytes(content))
    reader = ChunkReader(InputFolders(str(folder)), SCHEMA)
    rows = rows_of(reader, Piece("a.parquet", 0, 5, 12, before=38))
    assert [row["id"] for row in rows] == list(range(38, 50))


@given(st.integers(1, 100), st.integers(1, 30), st.integers(0, 9), st.integers(0, 9))
def test_a_piece_is_cut_into_even_parts(rows: int, max_rows: int, before: int, after: int) -> None:
    parts = Piece("a", 2, 3, rows, before, after).cut(max_rows)
    held = [row for part in parts for row in range(part.before, part.before + part.rows)]
    assert held == list(range(before, before + rows))
    assert {part.before + part.rows + part.after for part in parts} == {before + rows + after}
    sizes = [part.rows for part in parts]
    assert max(sizes) <= max_rows
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-rows // max_rows)


def test_rows_after_a_range_are_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{i:04d}" * 50 for i in range(20_000)]
    table = pa.table({"id": range(20_000), "text": texts})
    pq.write_table(table, path, use_dictionary=False, compression="none", data_page_size=10_000)
    content = bytearray(path.read_bytes())
    end = pq.ParquetFile(path).metadata.row_group(0).column(1)
    end = end.data_page_offset + end.total_compressed_size
    content[end - 2_000_000 : end] = b"\xff" * 2_000_000
    path.write_bytes(bytes(content))
    reader = ChunkReader(InputFolders(str(tmp_path)), SCHEMA)
    piece = Piece("a.parquet", 0, 1, 900, before=100, after=19_000)
    assert [row["id"] for row in rows_of(reader, piece)] == list(range(100, 1000))
    piece = Piece("a.parquet", 0, 1, 1000, before=19_000)
    with pytest.raises(JobError, match="a.parquet' cannot be read in rows 19000 to 19999 of row g"):
        rows_of(reader, piece)


def test_a_row_group_is_not_read_whole_to_read_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [os.urandom(500).hex() for _ in range(20_000)]
    pq.write_table(pa.table({"id": range(20_000), "text": texts}), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet, "BUFFER_BYTES", 1 << 16)
    before = read_bytes_of_this_process()
    reader = ChunkReader(InputFolders(str(tmp_path)), SCHEMA)
    rows_of(reader, Piece("a.parquet", 0, 1, 1000, before=0, after=19_000))
    assert read_bytes_of_this_process() - before < 6_000_000


def read_bytes_of_this_process() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


LONG = "x" * 100_000


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_batches_of_long_documents_have_few_rows(tmp_path: Path, use_dictionary: bool) -> None:
    texts = [LONG] * 1000 if use_dictionary else [f"{i:06d}{LONG}" for i in range(1000)]
    table = pa.table({"id": range(1000), "text": texts})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=use_dictionary)
    reader = ChunkReader(InputFolders(str(tmp_path)), SCHEMA)
    sizes = [batch.nbytes for batch in reader.read([Piece("a.parquet", 0, 1, 1000)])]
    assert max(sizes) <= READ_BYTES
    assert len(sizes) < 20


def test_what_is_decoded_at_once_is_bounded_by_the_bytes_of_its_rows(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{i:06d}{LONG}" for i in range(1000)], "other": [LONG] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    with open_parquet(str(tmp_path / "a.parquet")) as file:
        sizes = [batch.nbytes for batch in read_batches(file, [0], ["text"], 4096, READ_BYTES)]
        assert max(sizes) <= READ_BYTES
        assert len(sizes) == 6
        assert next(read_batches(file, [0], ["text", "other"], 50, READ_BYTES)).num_rows == 50


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(50, 500))
def test_halves_hold_all_rows_and_few_bytes(sizes: list[int], max_bytes: int) -> None:
    batch = pa.RecordBatch.from_pydict({"text": pa.array(["x" * size for size in sizes])})
    parts = list(halved(batch, max_bytes))
    assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([batch]))
    assert all(part.num_rows <= 1 or part.nbytes <= max_bytes for part in parts)


def test_rows_that_share_a_dictionary_are_not_taken_apart() -> None:
    texts = pa.array([LONG, "b"] * 50).dictionary_encode()
    batch = pa.RecordBatch.from_pydict({"text": texts})
    assert len(list(halved(batch, 1000))) == 1


def test_the_size_of_a_column_is_that_of_all_that_is_nested_in_it(tmp_path: Path) -> None:
    rows = [{"a": i, "b": [str(i)]} for i in range(100)]
    table = pa.table({"s": rows, "s2": range(100), "t.u": range(100)})
    pq.write_table(table, tmp_path / "a.parquet")
    with open_parquet(str(tmp_path / "a.parquet")) as file:
        assert column_places(file, ["s"]) == [0, 1]
        assert column_places(file, ["t.u", "s2"]) == [2, 3]
        columns = [file.metadata.row_group(0).column(index) for index in (0, 1)]
        size = encoded_bytes(file.metadata.row_group(0), [0, 1])
        assert size == sum(column.total_uncompressed_size for column in columns) > 0


def test_names_that_begin_as_copies_do_are_read_from_the_copies(tmp_path: Path) -> None:
    for folder, number in {"in": 1, "copies/day=7": 2}.items():
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"text": [str(number)]}), tmp_path / folder / "a.parquet")
    folders = InputFolders(str(tmp_path / "in"), str(tmp_path / "copies"))
    schema = pa.schema([("text", pa.string()), ("day", pa.int32())])
    pieces = [Piece(name, 0, 1, 1) for name in ("a.parquet", "_copies/day=7/a.parquet")]
    assert rows_of(ChunkReader(folders, schema), *pieces) == [
        {"text": "1", "day": None},
        {"text": "2", "day": 7},
    ]


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    with pytest.raises(JobError, match="b.parquet' cannot be read in row groups 1 to 2"):
        rows_of(ChunkReader(InputFolders(str(folder)), SCHEMA), Piece("b.parquet", 1, 2, 20))


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece("a.parquet", 1, 1, 12), "holds 10 rows in row groups 1 to 1.*held 12"),
        (Piece("a.parquet", 1, 1, 8), "holds 10 rows in row groups 1 to 1.*held 8"),
        (Piece("a.parquet", 1, 1, 3, 2, 4), "holds 10 rows in row groups 1 to 1.*held 9"),
        (Piece("a.parquet", 1, 1, 3, 2, 6), "holds 10 rows in row groups 1 to 1.*held 11"),
        (Piece("a.parquet", 4, 2, 20), "holds 10 rows in row groups 4 to 5.*held 20"),
    ],
)
def test_a_file_that_holds_other_rows_than_it_did_is_named(
    folder: Path, piece: Piece, message: str
) -> None:
    with pytest.raises(JobError, match=f"a.parquet' {message}"):
        rows_of(ChunkReader(InputFolders(str(folder)), SCHEMA), piece)


@pytest.mark.parametrize("looked_at", [0, 1 << 20])
def test_the_longest_text_is_known_or_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_at: int
) -> None:
    monkeypatch.setattr(parquet, "MOST_TEXT_LOOKED_AT", looked_at)
    texts = [["ab", None, "é" * 10], ["x"]]
    for index, one in enumerate(texts):
        table = pa.table({"Text": pa.array(one).dictionary_encode(), "id": range(len(one))})
        pq.write_table(table, tmp_path / f"{index}.parquet", use_dictionary=index == 0)
    found = text_sizes([str(tmp_path / f"{index}.parquet") for index in (0, 1)], "text")
    assert found.longest is not None
    assert found.longest == 20 if looked_at else found.longest > 20
    assert found.total is not None
    assert found.total > 23
    assert text_sizes([str(tmp_path / "0.parquet")], "day") == TextSizes()


def test_the_longest_text_is_known_if_some_files_have_none(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    pq.write_table(pa.table({"day": [1]}), paths[0])
    pq.write_table(pa.table({"a": [{"b": 1}], "a.b": ["good"]}), paths[1])
    assert text_sizes(paths, "a.b").longest == 4


def test_the_bounds_of_a_column_are_not_those_of_a_field_or_of_no_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    table = pa.table({"a": [{"b": 2**60}], "a.b": [-7]})
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table.slice(0, 0))
    assert whole_number_bounds(path, "A.B") == (-7, -7)
    pq.write_table(table.slice(0, 0), path)
    assert whole_number_bounds(path, "a.b") == (0, 0)


def test_ids_are_made_of_chunk_and_place_whatever_part_is_read(folder: Path) -> None:
    reader = ChunkReader(InputFolders(str(folder)), pa.schema([*SCHEMA, ROW_ID]))
    chunk = placed_chunk(7, [Piece("a.parquet", 1, 2, 20), Piece("a.parquet", 4, 1, 8, before=2)])
    whole = rows_of(reader, *chunk.pieces)
    assert [row["row_id"] for row in whole] == [f"00000007-{place:08d}" for place in range(28)]
    parts = [part for piece in chunk.pieces for part in piece.cut(3)]
    assert rows_of(reader, *parts) == whole
    ids = {row["id"]: row["row_id"] for row in whole}
    assert (ids[10], ids[42]) == ("00000007-00000000", "00000007-00000020")


def test_a_column_of_the_name_of_the_ids_is_read_as_it_is(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row_id": ["x", None]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "b.parquet")
    schema = pa.schema([("row_id", pa.string())])
    reader = ChunkReader(InputFolders(str(tmp_path)), schema)
    rows = rows_of(reader, Piece("a.parquet", 0, 1, 2), Piece("b.parquet", 0, 1, 1))
    assert [row["row_id"] for row in rows] == ["x", None, None]
