"""With `dedupe` the model sees each distinct input once, and the output has every row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.rows.writing import PLAIN_DAYS
from tests.engines.conftest import Run
from tests.engines.test_odd_types import ODD, odd_table
from tests.tiny_models import WORDS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCORED = ["id", "text", "prediction", "probability", "n_tokens", "error"]
DISTINCT = [" ".join(WORDS[i % len(WORDS)] for i in range(n, n + 1 + n % 7)) for n in range(200)]


def texts(distinct: int, rows: int) -> list[str | None]:
    """Returns texts in disorder, of which each is there as often; `None` is one of them."""
    found: list[str | None] = [None, *dict.fromkeys(DISTINCT)][: distinct + 1]
    assert len(found) == distinct + 1
    drawn = [found[row % len(found)] for row in range(rows)]
    random.Random(0).shuffle(drawn)
    return drawn


def write_files(folder: Path, drawn: list[str | None], files: int = 4) -> Path:
    folder.mkdir()
    table = pa.table({"id": range(len(drawn)), "text": pa.array(drawn, pa.string())})
    each = -(-len(drawn) // files)
    for number in range(files):
        part = table.slice(number * each, each)
        pq.write_table(part, folder / f"{number}.parquet", row_group_size=150)
    return folder


def same_scores(left: pa.Table, right: pa.Table) -> bool:
    others = [name for name in SCORED if name != "probability"]
    gaps = pc.abs(pc.subtract(left["probability"], right["probability"]))
    is_near = pc.max(gaps).as_py() < 1e-5
    return left.select(others).equals(right.select(others)) and is_near


def test_each_distinct_input_goes_through_the_model_once(run: Run, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", texts(20, 2000))
    options = {"chunks": {"target_rows": 400}, "batching": {"window_rows": 64}}
    _, plain = run(str(source), output=str(tmp_path / "plain"), **options)
    result, found = run(str(source), dedupe=True, **options)
    assert (result.rows, result.error_rows) == (2000, pc.sum(pc.is_null(plain["text"])).as_py())
    assert result.statistics.forward_rows == 20
    assert result.statistics.rows == 2000
    assert found["id"].to_pylist() == list(range(2000))
    assert same_scores(found, plain)
    assert "dedupe: 21 different inputs in 2,000 rows" in result.notes


def test_an_input_without_repeats_and_one_without_rows_are_scored(run: Run, tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", texts(20, 21))
    result, found = run(str(source), dedupe=True)
    assert found["id"].to_pylist() == list(range(21))
    assert (result.statistics.forward_rows, result.rows) == (20, 21)
    nothing = write_files(tmp_path / "none", [], files=1)
    assert run(str(nothing), dedupe=True, output=str(tmp_path / "empty"))[0].rows == 0


def test_a_text_of_more_rows_than_a_chunk_is_scored_once_in_each(run: Run, tmp_path: Path) -> None:
    drawn = ["good"] * 1000 + texts(20, 105)
    random.Random(1).shuffle(drawn)
    source = write_files(tmp_path / "in", drawn)
    result, found = run(str(source), dedupe=True, chunks={"target_rows": 200})
    assert found["text"].to_pylist() == drawn
    assert 20 + 1000 // 200 <= result.statistics.forward_rows <= 21 + 2 * 1000 // 200


def test_odd_columns_come_out_as_they_went_in(run: Run, tmp_path: Path) -> None:
    pq.write_table(odd_table(), tmp_path / "in.parquet")
    _, found = run(str(tmp_path / "in.parquet"), dedupe=True)
    for name, (_, _, values) in ODD.items():
        assert found[name].to_pylist() == values, name


@pytest.mark.spark
def test_a_table_is_copied_once_and_known_again(
    tmp_path: Path, classifier: Path, spark: SparkSession
) -> None:
    columns = ["id", "text", "day", "time", "instant", "price", "pair", "map", "u8", "blob"]
    table = pa.concat_tables([odd_table().select(columns)] * 9)
    pq.write_table(table.replace_schema_metadata(PLAIN_DAYS), tmp_path / "in.parquet")
    df = spark.read.parquet(str(tmp_path / "in.parquet"))
    config = sparkinfer.ScoringConfig(
        model=str(classifier), input_col="text", output=str(tmp_path / "out"), dedupe=True
    )
    result = sparkinfer.run(config, spark, df=df)
    assert (result.rows, result.statistics.forward_rows) == (36, 4)
    found = pads.dataset(str(tmp_path / "out"), format="parquet").to_table()
    for name in ("day", "time", "instant", "price", "pair", "map", "blob"):
        paired = {row["id"]: row[name] for row in found.to_pylist()}
        assert [paired[number] for number in range(4)] == ODD[name][2], name
    assert sparkinfer.run(config, spark, df=df).workers is None
    [copy] = (tmp_path / "out" / "_sparkinfer" / "input").iterdir()
    assert copy.name.startswith("gathered-")
