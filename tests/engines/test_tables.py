"""Tables, views and queries as input: what they were is known when they are given again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

import sparkinfer
from sparkinfer.engines.spark_input import SparkInput, _Table
from sparkinfer.exceptions import ConfigError, InputError, ResumeError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark

Run = Callable[..., sparkinfer.RunResult]

FIRST = [(0, "good", "2024-01-01"), (1, "bad", "2024-01-02"), (2, "good", "2024-01-02")]
MORE = [(3, "red", "2024-01-03"), (4, None, "2024-01-04")]


@pytest.fixture
def run(classifier: Path, tmp_path: Path, spark: SparkSession) -> Run:
    def run_on(source: str | None = "reviews", **options: Any) -> sparkinfer.RunResult:
        df = options.pop("df", None)
        config = sparkinfer.ScoringConfig(
            **{
                "model": str(classifier),
                "input": source if df is None else None,
                "input_col": "text",
                "output": str(tmp_path / "out"),
                "dtype": "float32",
                "acceleration": "none",
                **options,
            }
        )
        return sparkinfer.run(config, spark, df=df)

    return run_on


@pytest.fixture
def view(spark: SparkSession) -> Iterator[Callable[[list[tuple[Any, ...]]], None]]:
    """Gives the view `reviews` other rows."""

    def show(rows: list[tuple[Any, ...]]) -> None:
        df = spark.createDataFrame(rows, "id int, text string, day string")
        df.selectExpr("id", "text", "cast(day as date) day").createOrReplaceTempView("reviews")

    show(FIRST)
    yield show
    spark.catalog.dropTempView("reviews")


def ids_in(folder: Path) -> list[int]:
    found = pads.dataset(str(folder), format="parquet").to_table()["id"].to_pylist()
    return sorted(found)


def test_a_view_with_the_same_rows_in_another_order_is_done(run: Run, view: Any) -> None:
    first = run()
    view(list(reversed(FIRST)))
    again = run()
    assert (again.rows, again.workers) == (3, None)
    assert again.notes == first.notes
    assert first.notes[0].startswith("the input is scored as it was copied at 20")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([*FIRST, MORE[0]], "3 rows then, 4 now"),
        ([*FIRST[:2], (2, "bad", "2024-01-02")], "3 rows, of which some have changed"),
        ([*FIRST[:2], (2, None, "2024-01-02")], "3 rows, of which some have changed"),
    ],
)
def test_a_view_whose_rows_changed_is_refused(
    run: Run, view: Any, tmp_path: Path, rows: Any, told: str
) -> None:
    run()
    view(rows)
    with pytest.raises(ResumeError, match=f"'reviews' as it was copied at 20.*{told}.*--incremen"):
        run()
    assert ids_in(tmp_path / "out") == [0, 1, 2]
    assert run(overwrite=True).rows == len(rows)


def test_columns_that_are_not_read_may_change(run: Run, view: Any) -> None:
    run(carry_cols=("id",))
    view([(row, text, "1999-01-01") for row, text, _ in FIRST])
    assert run(carry_cols=("id",)).workers is None


def test_new_rows_are_scored_by_a_column_that_grows(run: Run, view: Any, tmp_path: Path) -> None:
    options = {"incremental": True, "incremental_col": "day"}
    assert run(**options).rows == 3
    assert run(**options).workers is None
    view([*FIRST, *MORE])
    result = run(**options)
    assert (result.rows, result.rows_before, result.error_rows) == (5, 3, 1)
    assert ids_in(tmp_path / "out") == [0, 1, 2, 3, 4]
    assert run(**options).workers is None
    assert run().workers is None


@pytest.mark.parametrize(
    "late", [(5, "late", "2024-01-02"), (5, "late", "2023-01-01"), (5, "late", None)]
)
def test_new_rows_that_are_not_beyond_the_old_ones_are_refused(
    run: Run, view: Any, tmp_path: Path, late: Any
) -> None:
    options = {"incremental": True, "incremental_col": "day"}
    run(**options)
    view([*FIRST, *MORE, late])
    with pytest.raises(ResumeError, match="up to day 2024-01-02: 3 rows then, 4 now"):
        run(**options)
    assert ids_in(tmp_path / "out") == [0, 1, 2]


def test_a_table_without_rows_may_get_some(run: Run, view: Any) -> None:
    options = {"incremental": True, "incremental_col": "id"}
    view([])
    assert run(**options).rows == 0
    view(FIRST)
    assert run(**options).rows == 3


def test_instants_mark_rows_whatever_the_time_zone(run: Run, spark: SparkSession) -> None:
    options = {"incremental": True, "incremental_col": "at"}
    rows = "select * from values (0, 'a', timestamp_micros(1)), (1, 'b', timestamp_micros({}))"
    query = f"{rows} as t(id, text, at)"
    before = spark.conf.get("spark.sql.session.timeZone")
    try:
        spark.sql(query.format(7)).createOrReplaceTempView("instants")
        assert run("instants", **options).rows == 2
        spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
        more = query.format(7).replace("values", "values (2, 'c', timestamp_micros(8)),")
        spark.sql(more).createOrReplaceTempView("instants")
        assert run("instants", **options).rows == 3
    finally:
        spark.conf.set("spark.sql.session.timeZone", before or "UTC")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"incremental": True}, "--incremental-col COLUMN"),
        ({"incremental": True, "incremental_col": "no"}, "incremental_col='no': no such column"),
        ({"incremental_col": "id"}, "without incremental=true"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Run, view: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**options)


def test_a_dataframe_that_changed_is_refused(run: Run, spark: SparkSession) -> None:
    schema = "id int, text string, day string"
    run(df=spark.createDataFrame(FIRST, schema))
    assert run(df=spark.createDataFrame(FIRST, schema)).workers is None
    with pytest.raises(ResumeError, match="from the DataFrame as it was copied"):
        run(df=spark.createDataFrame(FIRST[1:], schema))


def test_of_a_random_dataframe_the_number_of_rows_counts(run: Run, spark: SparkSession) -> None:
    schema = "id int, text string, day string"
    rows, fewer = (spark.createDataFrame(one, schema) for one in (FIRST, FIRST[1:]))
    run(df=rows.selectExpr("*", "uuid() as key"))
    assert run(df=rows.selectExpr("*", "uuid() as key")).workers is None
    with pytest.raises(ResumeError, match="3 rows then, 2 now"):
        run(df=fewer.selectExpr("*", "uuid() as key"))


def test_a_version_spares_the_scan(run: Run, view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is made up: a table format that keeps one is not to be had here."""
    monkeypatch.setattr(_Table, "version", lambda self: "7")
    run()
    view([*FIRST, *MORE])
    assert run().workers is None
    monkeypatch.setattr(_Table, "version", lambda self: "8")
    with pytest.raises(ResumeError, match="3 rows then, 5 now"):
        run()


@pytest.mark.parametrize("name", ["my-reviews", "`my reviews`", "`odd``name`"])
def test_names_with_hyphens_and_backticks_work(run: Run, spark: SparkSession, name: str) -> None:
    df = spark.createDataFrame(FIRST, "id int, text string, day string")
    quoted = name if name.startswith("`") else f"`{name}`"
    df.createOrReplaceTempView("plain")
    spark.sql(f"create or replace temp view {quoted} as select * from plain")
    assert run(name).rows == 3


def test_a_query_is_scored(run: Run, view: Any, tmp_path: Path) -> None:
    assert run("select id, text, null as nothing from reviews where id > 0").rows == 2
    found = pads.dataset(str(tmp_path / "out"), format="parquet").to_table()
    assert found["nothing"].to_pylist() == [None, None]
    with pytest.raises(InputError, match="cannot be read as a query"):
        run("select nonsense from nowhere", overwrite=True)


@pytest.mark.parametrize("kind", ["map", "vector", "nested"])
def test_the_state_of_a_table_holds_every_type(spark: SparkSession, kind: str) -> None:
    df = odd_frames(spark)[kind]
    table = SparkInput(sparkinfer.ScoringConfig(model="m", input_col="text"), spark, df).open()
    assert table.table is not None
    names = list(table.schema.names)
    once, again = (table.table.state(names, until=None) for _ in range(2))
    assert once.is_same(again)
    fewer = SparkInput(
        sparkinfer.ScoringConfig(model="m", input_col="text"), spark, df.limit(1)
    ).open()
    assert fewer.table is not None
    assert not fewer.table.state(names, until=None).is_same(once)


@pytest.mark.parametrize("kind", ["map", "vector", "nested"])
def test_odd_columns_of_a_table_are_carried(
    run: Run, spark: SparkSession, tmp_path: Path, kind: str
) -> None:
    df = odd_frames(spark)[kind]
    assert run(df=df).rows == 2
    assert run(df=df).workers is None
    back = spark.read.parquet(str(tmp_path / "out"))
    assert back.schema["odd"].dataType.simpleString() == df.schema["odd"].dataType.simpleString()
    assert back.orderBy("id").select("odd").collect() == df.orderBy("id").select("odd").collect()


def odd_frames(spark: SparkSession) -> dict[str, DataFrame]:
    from pyspark.ml.linalg import Vectors

    vectors = [(0, "good", Vectors.dense([1.0, 2.0])), (1, "bad", Vectors.sparse(3, [0], [1.0]))]
    rows = spark.createDataFrame([(0, "good"), (1, "bad")], "id int, text string")
    return {
        "vector": spark.createDataFrame(vectors, ["id", "text", "odd"]),
        "map": rows.selectExpr("id", "text", "map('a', id, 'b', null) as odd"),
        "nested": rows.selectExpr("id", "text", "array(named_struct('m', map('a', id))) as odd"),
    }


def test_a_vector_in_place_of_the_text_is_refused(run: Run, spark: SparkSession) -> None:
    df = odd_frames(spark)["vector"]
    with pytest.raises(InputError, match="input_col='odd' has type struct.*expected string"):
        run(df=df, input_col="odd")


def test_two_columns_of_one_name_are_refused_where_they_are_read(
    run: Run, spark: SparkSession
) -> None:
    df = spark.createDataFrame([(0, "good", 1, 2)], ["id", "text", "x", "X"])
    with pytest.raises(InputError, match="column 'x' appears twice.*--carry-cols"):
        run(df=df)
    assert run(df=df, carry_cols=("id",)).rows == 1


def test_a_field_called_void_is_no_column_of_nulls(run: Run) -> None:
    fine = "select 0 as id, 'good' as text, named_struct('void', 1) as odd"
    assert run(fine).rows == 1
    with pytest.raises(InputError, match="column 'odd' has type array<void>"):
        run("select 0 as id, 'good' as text, array(null) as odd", overwrite=True)


def test_the_copy_has_plain_times(run: Run, spark: SparkSession, tmp_path: Path) -> None:
    query = (
        "select 0 as id, 'good' as text, timestamp '0001-01-01 00:00:00Z' as at, "
        "date '0001-01-01' as day, timestamp_ntz '9999-12-31 23:59:59.999999' as plain"
    )
    assert run(query).rows == 1
    found = pads.dataset(str(tmp_path / "out"), format="parquet").to_table()
    kinds = [found.schema.field(name).type for name in ("at", "day", "plain")]
    assert kinds == [pa.timestamp("us", "UTC"), pa.date32(), pa.timestamp("us")]
    assert str(found["day"][0]) == "0001-01-01"
    assert str(found["plain"][0].as_py()) == "9999-12-31 23:59:59.999999"
