"""Shares of a chunk: what goes through the UDF, and that each row is in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.engines import spark_chunks
from sparkinfer.engines.spark_chunks import (
    SparkChunks,
    WrittenShare,
    consecutive,
    files_in_order,
    with_files,
    write_share,
)
from sparkinfer.engines.spark_worker import WorkerJob
from sparkinfer.exceptions import RowConservationError
from sparkinfer.metrics.measure import Measure
from sparkinfer.plan.chunks import placed_chunk
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkTask
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.reading import InputFolders, Piece
from sparkinfer.rows.tally import Tally, WrittenFile
from sparkinfer.workers.suspects import Attempt
from tests.made_up_words import Words

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS, GROUP = 700, 150


@pytest.fixture
def task(tmp_path: Path) -> ChunkTask:
    """A chunk of the rows 50 to 650 of a file."""
    table = pa.table(
        {
            "id": range(ROWS),
            "text": [f"{'word ' * (row % 5)}end" for row in range(ROWS)],
            "blob": [b"%d" % row for row in range(ROWS)],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=GROUP)
    pieces = [Piece("in.parquet", 0, 2, 250, 50, 0), Piece("in.parquet", 2, 3, 350, 0, 50)]
    return ChunkTask(placed_chunk(3, pieces), str(tmp_path / "staging"))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    words: Any = Words(("text",), tmp_path / "broken")
    carried = pa.schema([("id", pa.int64()), ("blob", pa.binary())])
    columns = Columns(carried, pa.schema([("text", pa.string())]), words.fields)
    measure = Measure(None, None, "", (), ("error",))
    folders, notes = InputFolders(str(tmp_path)), str(tmp_path / "notes")
    return Plan(words, columns, measure, folders, "", Workers("cpu", 3), notes=notes)


def attempt_of(plan: Plan, **more: Any) -> Attempt:
    return Attempt(plan.notes, "00000003", "launch", **more)


@pytest.mark.spark
def test_a_chunk_is_written_in_shares_that_hold_its_rows_in_order(
    spark: SparkSession, plan: Plan, task: ChunkTask
) -> None:
    scored = SparkChunks(spark, plan, None, lambda: plan.workers).score(task, attempt_of(plan))
    files = [pq.read_table(Path(task.staging) / file.name) for file in scored.files]
    assert [file.num_rows for file in files] == [200, 200, 200]
    table = pa.concat_tables(files)
    assert table["id"].to_pylist() == list(range(50, 650))
    assert table["blob"].to_pylist() == [b"%d" % row for row in range(50, 650)]
    assert [len(words) for words in table["words"].to_pylist()] == [
        row % 5 + 1 for row in range(50, 650)
    ]
    assert [(file.tally.rows, file.tally.read) for file in scored.files] == [(200, 200)] * 3


@pytest.mark.spark
def test_a_chunk_over_which_a_worker_died_is_one_task(
    spark: SparkSession, plan: Plan, task: ChunkTask
) -> None:
    attempt = attempt_of(plan, has_predecessor=True)
    scored = SparkChunks(spark, plan, None, lambda: plan.workers).score(task, attempt)
    assert [file.tally.rows for file in scored.files] == [600]


@pytest.mark.spark
def test_nothing_but_row_numbers_goes_through_the_udf(
    spark: SparkSession, plan: Plan, task: ChunkTask
) -> None:
    numbers = spark.range(0, 600, 1, 3)
    df = with_files(numbers, task, WorkerJob(plan), "attempt")
    executed = df._jdf.queryExecution().executedPlan().toString()
    [evaluated] = [line for line in executed.splitlines() if "Python" in line]
    assert evaluated.split("ArrowEvalPython [", 1)[1].startswith("score(id#")
    assert "blob" not in executed
    assert "Exchange" not in executed
    assert numbers.columns == ["id"]


def test_a_share_that_is_not_all_its_rows_is_an_error(
    plan: Plan, task: ChunkTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_fewer(*_: Any) -> WrittenFile:
        return WrittenFile("a.parquet", Tally(rows=199, read=199))

    monkeypatch.setattr(spark_chunks, "write_rows", one_fewer)
    with pytest.raises(RowConservationError, match="199 rows were worked on, expected rows 0 to"):
        write_share(WorkerJob(plan), task.chunk.pieces, task.staging, "attempt")


def test_consecutive_numbers_are_a_range() -> None:
    assert consecutive([np.array([7, 8]), np.array([9])]) == range(7, 10)
    assert not consecutive([])


@pytest.mark.parametrize("numbers", [[0, 2], [1, 0], [3, 3], [0, 1, 1, 3]])
def test_numbers_that_are_no_range_are_an_error(numbers: list[int]) -> None:
    with pytest.raises(RowConservationError, match="do not follow one another"):
        consecutive([np.array(numbers[:1]), np.array(numbers[1:])])


def share_of(first: int, end: int) -> WrittenShare:
    return WrittenShare(range(first, end), WrittenFile(f"{first}", Tally()))


def test_files_are_in_the_order_of_their_rows() -> None:
    shares = [share_of(4, 9), share_of(0, 4)]
    assert [file.name for file in files_in_order(shares, 9)] == ["0", "4"]


@pytest.mark.parametrize(
    "ranges",
    [[], [(0, 8)], [(1, 9)], [(0, 4), (5, 9)], [(0, 5), (4, 9)], [(0, 9), (0, 9)], [(0, 10)]],
)
def test_rows_that_are_in_no_file_or_in_two_are_an_error(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(RowConservationError, match="of 9 rows of a chunk, tasks wrote"):
        files_in_order([share_of(*one) for one in ranges], 9)
