"""A finished output is in a table of Spark's once, whatever happened on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.config import ScoringConfig
from sparkinfer.engines.file_input import FileInput
from sparkinfer.exceptions import ConfigError, InputError, JobError, OutputError
from sparkinfer.jobs.runner import run_job
from sparkinfer.plan.prelude import Prelude
from sparkinfer.spark.publishing import CatalogTables
from tests.disk import Killed, ids_of
from tests.made_up_engine import MadeUpEngine, add_file, job_of_eighty_rows

pytestmark = pytest.mark.spark


@pytest.fixture
def table(spark: Any, tmp_path: Path) -> Iterator[str]:
    """The name of a table that is not there yet."""
    spark.sql(f"CREATE DATABASE results LOCATION '{tmp_path / 'warehouse'}'")
    yield "results.scored"
    spark.sql("DROP DATABASE results CASCADE")


@pytest.fixture
def config(classifier: Path, tmp_path: Path, table: str) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path).replace(
        engine="pandas_udf", table={"name": table}
    )


def run(config: ScoringConfig, spark: Any, **options: Any) -> MadeUpEngine:
    engine = MadeUpEngine(config, **options)
    run_job(Prelude(config, FileInput(config), engine, CatalogTables(spark)))
    return engine


def ids_in(spark: Any, table: str) -> list[int]:
    return sorted(row.id for row in spark.read.table(table).select("id").collect())


def test_rows_are_appended_once_and_new_ones_too(config: ScoringConfig, spark: Any) -> None:
    for _ in range(2):
        run(config, spark)
        assert ids_in(spark, "results.scored") == list(range(80))
    add_file(Path(str(config.input)), 2)
    run(config.replace(incremental=True), spark)
    assert ids_in(spark, "results.scored") == list(range(120))
    files = pq.read_table(str(config.output)).sort_by("id").to_pylist()
    rows = [row.asDict() for row in spark.read.table("results.scored").sort("id").collect()]
    assert rows == files


@pytest.mark.parametrize("kind", ["USING parquet PARTITIONED BY (label)", "USING orc"])
def test_a_table_of_another_kind_takes_rows_by_the_names_of_its_columns(
    config: ScoringConfig, spark: Any, kind: str
) -> None:
    run(config.replace(table={}), spark)
    columns = spark.read.parquet(str(config.output)).dtypes
    defined = ", ".join(f"{name} {of}" for name, of in reversed(columns))
    spark.sql(f"CREATE TABLE results.scored ({defined}) {kind}")
    for _ in range(2):
        run(config, spark)
    names = [name for name, _ in columns]
    found = spark.read.table("results.scored").select(*names).sort("id").collect()
    assert found == spark.read.parquet(str(config.output)).sort("id").collect()


def test_replacing_leaves_the_rows_of_the_last_run(config: ScoringConfig, spark: Any) -> None:
    replacing = config.replace(table={"name": "results.scored", "mode": "replace"})
    run(replacing, spark, failing=[3])
    run(replacing.replace(retry_errors=True), spark)
    rows = spark.read.table("results.scored").where("error = 'model: made up'").count()
    assert (ids_in(spark, "results.scored"), rows) == (list(range(80)), 0)


@pytest.mark.parametrize("after", [True, False])
def test_a_kill_before_or_after_the_append_does_not_double_or_lose_it(
    config: ScoringConfig, spark: Any, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    write = CatalogTables.write

    def killed(*arguments: Any) -> None:
        if after:
            write(*arguments)
        raise Killed

    monkeypatch.setattr(CatalogTables, "write", killed)
    with pytest.raises(Killed):
        run(config, spark)
    monkeypatch.undo()
    assert run(config, spark).scored == []
    assert ids_in(spark, "results.scored") == list(range(80))


def test_an_append_whose_end_is_not_clear_is_told(
    config: ScoringConfig, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CatalogTables.write

    def partly(tables: CatalogTables, name: str, paths: Any, columns: Any, mode: Any) -> None:
        write(tables, name, paths[:1], columns, mode)
        raise Killed

    monkeypatch.setattr(CatalogTables, "write", partly)
    with pytest.raises(Killed):
        run(config, spark)
    monkeypatch.undo()
    with pytest.raises(JobError, match="an append of 80 rows was interrupted.*had 0 rows, has 20"):
        run(config, spark)
    run(config.replace(table={"name": "results.scored", "mode": "replace"}), spark)
    assert ids_in(spark, "results.scored") == list(range(80))


def test_what_cannot_work_is_refused_before_anything_is_written(
    config: ScoringConfig, spark: Any, tmp_path: Path
) -> None:
    spark.sql("CREATE TABLE results.scored (id string, more int) USING parquet")
    with pytest.raises(OutputError, match=r"id is string, expected bigint; .*more is not in the"):
        run(config, spark)
    spark.sql("CREATE VIEW results.seen AS SELECT * FROM results.scored")
    with pytest.raises(OutputError, match="table 'results.seen' is a view"):
        run(config.replace(table={"name": "results.seen"}), spark)
    with pytest.raises(OutputError, match="table 'missing.scored': there is no schema 'missing'"):
        run(config.replace(table={"name": "missing.scored"}), spark)
    with pytest.raises(ConfigError, match="table.name='a b': expected table, schema.table or"):
        run(config.replace(table={"name": "a b"}), spark)
    with pytest.raises(ConfigError, match="retry_errors=true with table.name"):
        config.replace(retry_errors=True)
    with pytest.raises(ConfigError, match="tables are written by Spark"):
        sparkinfer.run(config.replace(engine="local"))
    assert not Path(str(config.output)).exists()


def test_the_engine_writes_a_table_and_reads_a_query_over_it(
    config: ScoringConfig, spark: Any, tmp_path: Path
) -> None:
    dates = pa.array([-200_000] * 5, pa.date32())
    source = pa.table({"id": range(5), "text": ["good", None, "bad", "", "film"], "day": dates})
    pq.write_table(source, tmp_path / "few.parquet")
    few = config.replace(input=str(tmp_path / "few.parquet"), label_col=None)
    sparkinfer.run(few, spark)
    rows = spark.sql("SELECT id, cast(day AS string) AS day FROM results.scored").collect()
    assert {(row.id, row.day) for row in rows} == {(n, "1422-06-03") for n in range(5)}
    query = "SELECT id, text FROM results.scored WHERE prediction IS NOT NULL"
    again = few.replace(input=query, output=f"{config.output}-2", table={"name": "results.again"})
    assert sparkinfer.run(again, spark).rows == 4
    assert ids_in(spark, "results.again") == [0, 2, 3, 4]
    assert ids_of(again.output) == [0, 2, 3, 4]


def test_a_table_without_versions_has_no_version(config: ScoringConfig, spark: Any) -> None:
    spark.sql("CREATE TABLE results.plain USING parquet AS SELECT 1 AS id, 'good' AS text")
    asked = config.replace(input="results.plain", label_col=None, table={}, input_version=0)
    with pytest.raises(InputError, match="input 'results.plain' cannot be read as a table: "):
        sparkinfer.run(asked, spark)
