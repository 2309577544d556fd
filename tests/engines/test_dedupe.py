"""With `dedupe` the model sees each distinct input once, and the output has every row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from sparkinfer.plan import gathered
from sparkinfer.rows import gathering
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
