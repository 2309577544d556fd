"""What a Pandas UDF is given and what it returns is what was there, whatever pandas makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.engines.scoring_udf import with_scores
from sparkinfer.engines.spark_worker import WorkerJob
from sparkinfer.metrics.measure import Measure
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.reading import InputFolders
from sparkinfer.workers.statistics import ScoringStatistics

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

NAN, INF = math.nan, math.inf
WORDS = pa.list_(pa.struct([("word", pa.string()), ("p", pa.float32()), ("at", pa.int64())]))

ODD = pa.table(
    {
        "text": pa.array([b"good", b"caf\xe9", None, b""], pa.binary()).view(pa.string()),
        "flag": pa.array([True, None, False, True]),
        "small": pa.array([2**7 - 1, None, -(2**7), 0], pa.int8()),
        "count": pa.array([2**31 - 1, None, -(2**31), 0], pa.int32()),
        "large": pa.array([2**62 + 1, None, -(2**63), 2**63 - 1], pa.int64()),
        "share": pa.array([0.1, None, NAN, -INF], pa.float32()),
        "least": pa.array([1e-45, 3.4028235e38, -0.0, 16777217.0], pa.float32()),
        "exact": pa.array([0.1, None, NAN, 5e-324], pa.float64()),
        "shares": pa.array([[0.1, 0.9], None, [], [None, NAN, INF]], pa.list_(pa.float32())),
        "doubles": pa.array([[0.1, None, NAN], None, [], [5e-324]], pa.list_(pa.float64())),
        "tokens": pa.array([[1, None], None, [], [2**31 - 1]], pa.list_(pa.int32())),
        "names": pa.array([["a", None], None, [], ["é"]], pa.list_(pa.string())),
        "grid": pa.array([[[0.1, 1], [2, None]], None, [None, []], [[3]]]).cast(
            pa.list_(pa.list_(pa.float32()))
        ),
        "map": pa.array(
            [[("k", 0.1), ("n", NAN)], None, [], [("x", None)]], pa.map_(pa.string(), pa.float32())
        ),
        "counts": pa.array(
            [[(2**62 + 1, 1)], None, [], [(0, None)]], pa.map_(pa.int64(), pa.int8())
        ),
        "day": pa.array([date(1950, 1, 1), None, date(9999, 12, 31), date(1970, 1, 1)]),
        "price": pa.array([Decimal("0.10"), None, Decimal(-1), Decimal(0)], pa.decimal128(38, 2)),
        "blob": pa.array([b"\x00\xff", None, b"", b"1"]),
        "words": pa.array(
            [
                [{"word": "x", "p": 0.1, "at": 2**62 + 1}, None],
                None,
                [],
                [{"word": None, "p": NAN, "at": None}, {"word": "", "p": None, "at": -1}],
            ],
            WORDS,
        ),
        "pair": pa.array(
            [{"a": 1, "b": [0.1]}, None, {"a": None, "b": None}, {"a": 2, "b": [None]}],
            pa.struct([("a", pa.int64()), ("b", pa.list_(pa.float32()))]),
        ),
    }
)


@dataclass(frozen=True)
class Echo:
    """Adds each column that it reads under another name; a `ProcessorSpec` as far as needed."""

    schema: pa.Schema

    prefix = "again "
    labels = ()
    replaces_rows = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.schema.names)

    @property
    def fields(self) -> pa.Schema:
        return pa.schema([field.with_name(self.prefix + field.name) for field in self.schema])

    def open(self, slot: Any, report: Any) -> _Echoing:
        return _Echoing(self.schema)


class _Echoing:
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self.statistics = ScoringStatistics()

    def activities(self) -> tuple[None]:
        return (None,)

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            assert batch.schema.remove_metadata() == self._schema
            yield batch


@pytest.mark.parametrize("name", ODD.column_names)
def test_a_column_goes_through_a_udf_unchanged(
    spark: SparkSession, tmp_path: Path, name: str
) -> None:
    table = ODD.select([name])
    pq.write_table(table, tmp_path / "in.parquet")
    echo: Any = Echo(table.schema)
    columns = Columns(table.schema, table.schema, echo.fields)
    measure = Measure(None, None, "", (), ())
    plan = Plan(echo, columns, measure, InputFolders(""), "", Workers("cpu", 1))
    df = spark.read.parquet(str(tmp_path / "in.parquet"))
    scored = with_scores(df.coalesce(1), WorkerJob(plan))
    scored.write.parquet(str(tmp_path / "out"))
    found = pq.read_table(tmp_path / "out")
    assert plain(found[f"again {name}"]) == plain(table[name])
    assert plain(found[name]) == plain(table[name])


def plain(column: pa.ChunkedArray) -> str:
    """Returns values in a form in which NaN is itself, and bytes that are no text can be shown."""
    whole = column.combine_chunks()
    if whole.type == pa.string():
        whole = whole.view(pa.binary())
    return repr(whole.to_pylist())
