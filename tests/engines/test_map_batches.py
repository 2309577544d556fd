"""`map_batches` over DataFrames: what users of Ray Data know, on Spark."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparkinfer
from sparkinfer.api.batches import ActorPoolStrategy, TaskPoolStrategy, workers_of
from sparkinfer.exceptions import ConfigError, JobError
from tests import made_up_functions as functions
from tests.standalone_cluster import StandaloneCluster, run_driver
from tests.tiny_generators import make_generator

pytestmark = pytest.mark.spark


@pytest.fixture
def numbers(spark: Any) -> Any:
    rows = [(row, f"text {row}") for row in range(100)]
    return spark.createDataFrame(rows, "id long, text string").repartition(3)


def rows_of(df: Any) -> list[dict[str, Any]]:
    return sorted((row.asDict() for row in df.collect()), key=lambda row: row["id"])


def test_the_result_is_lazy_and_has_what_the_function_returns(numbers: Any) -> None:
    result = sparkinfer.map_batches(numbers, functions.shout, batch_size=7)
    assert result.schema.simpleString() == "struct<id:bigint,loud:string>"
    assert rows_of(result) == [{"id": i, "loud": f"TEXT {i}"} for i in range(100)]


def test_the_inferred_columns_are_shown(numbers: Any, caplog: pytest.LogCaptureFixture) -> None:
    sparkinfer.map_batches(numbers, functions.shout)
    assert "columns id bigint, loud string; give them as schema=" in caplog.text


def test_with_a_schema_nothing_runs_before_it_is_asked_for(numbers: Any, tmp_path: Path) -> None:
    result = sparkinfer.map_batches(
        numbers, functions.Touches, fn_constructor_args=[str(tmp_path / "ran")], schema="id bigint"
    )
    assert not (tmp_path / "ran").exists()
    assert result.count() == 100
    assert (tmp_path / "ran").exists()


def test_names_and_types_of_columns_come_through(spark: Any) -> None:
    df = spark.sql(
        "select 1 as `a.b`, date '2024-02-29' as `c``d`, timestamp '2024-02-29 12:00:00' as t, "
        "array(1.5f) as v, map('k', 1) as m, struct(1 as x) as s, cast(1.10 as decimal(10,2)) as d"
    )
    result = sparkinfer.map_batches(df, functions.same, batch_format="pyarrow")
    assert result.schema.simpleString() == df.schema.simpleString()
    assert result.collect() == df.collect()


def test_a_class_is_constructed_once_in_a_worker_with_its_arguments(numbers: Any) -> None:
    result = sparkinfer.map_batches(
        numbers.repartition(8),
        functions.CountsConstructions,
        fn_constructor_kwargs={"number": 5},
        fn_args=[10],
        batch_size=3,
    )
    rows = rows_of(result)
    assert [row["sum"] for row in rows] == [row + 15 for row in range(100)]
    # In each process, for the look at the first rows and all partitions together.
    assert {row["constructions"] for row in rows} == {1}


@pytest.mark.parametrize("batch_format", ["default", "numpy", "pandas", "pyarrow", None])
def test_batches_come_in_the_format_asked_for(numbers: Any, batch_format: str | None) -> None:
    result = sparkinfer.map_batches(numbers, functions.says_format, batch_format=batch_format)
    expected = {"pandas": "DataFrame", "pyarrow": "Table"}.get(str(batch_format), "dict")
    assert {row["given"] for row in rows_of(result)} == {expected}


def test_so_many_workers_get_a_partition_each(numbers: Any) -> None:
    counted = sparkinfer.map_batches(
        numbers, functions.same, concurrency=4, schema="id long, text string"
    )
    assert counted.rdd.getNumPartitions() == 4


@pytest.mark.parametrize(
    ("compute", "concurrency", "expected"),
    [
        (None, None, None),
        (None, 3, 3),
        (None, np.int64(3), 3),
        (None, (1, 4), 4),
        (None, (1, 4, 2), 4),
        (ActorPoolStrategy(size=2), 3, 2),
        (ActorPoolStrategy(min_size=1, max_size=5), None, 5),
        (TaskPoolStrategy(size=6), None, 6),
        (TaskPoolStrategy(), 3, None),
    ],
)
def test_how_many_workers_are_asked_for(
    compute: Any, concurrency: Any, expected: int | None
) -> None:
    assert workers_of(compute, concurrency) == expected


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"concurrency": 0}, "concurrency=0: expected a number of workers from 1"),
        ({"concurrency": "many"}, "concurrency='many'"),
        ({"compute": "actors"}, "compute='actors': expected an ActorPoolStrategy"),
        ({"num_gpus": 0.5}, "num_gpus=0.5: expected 0 or 1"),
        ({"num_cpus": -1}, "num_cpus=-1: expected a number from 0"),
        ({"batch_size": 2.5}, "batch_size=2.5: expected a number of rows"),
        ({"fn_constructor_args": [1]}, "it is a function, which has none"),
        ({"schema": "id"}, "schema='id' at its end"),
        ({"schema": object()}, "schema is a object, expected a text such as"),
        ({"fn_args": 3}, "fn_args=3: expected a list"),
        ({"fn_constructor_args": "path"}, "fn_constructor_args='path': expected a list"),
        ({"fn_kwargs": [1]}, "fn_kwargs=[1]: expected a dict"),
    ],
)
def test_wrong_arguments_are_told_at_once(
    numbers: Any, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        sparkinfer.map_batches(numbers, functions.shout, **options)
    assert problem in str(refused.value)


def test_what_is_no_dataframe_of_spark_is_told() -> None:
    with pytest.raises(ConfigError, match="df is a list, expected a Spark DataFrame"):
        sparkinfer.map_batches([1], functions.shout)  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_an_error(numbers: Any) -> None:
    with pytest.raises(sparkinfer.SparkInferError, match="GPU"):
        sparkinfer.map_batches(numbers, functions.shout, num_gpus=1)


def test_a_function_that_fails_names_itself_and_its_line(numbers: Any) -> None:
    with pytest.raises(JobError, match=r"fails failed over a batch .*made_up_functions.py, line"):
        sparkinfer.map_batches(numbers, functions.fails)
    later = sparkinfer.map_batches(numbers, functions.fails, schema="id long")
    with pytest.raises(Exception, match="RuntimeError: always"):
        later.collect()


def test_an_empty_table_needs_a_schema(numbers: Any) -> None:
    empty = numbers.limit(0)
    with pytest.raises(ConfigError, match="the input has no rows that show what it returns"):
        sparkinfer.map_batches(empty, functions.shout)
    given = sparkinfer.map_batches(empty, functions.shout, schema="id long, loud string")
    assert given.collect() == []


def test_writing_into_a_batch_is_an_error_unless_it_is_a_copy(numbers: Any) -> None:
    with pytest.raises(JobError, match="ValueError: .*read-only"):
        sparkinfer.map_batches(numbers, functions.writes)
    copied = sparkinfer.map_batches(numbers, functions.writes, zero_copy_batch=False)
    assert {row["id"] for row in rows_of(copied)} == {-1}


def test_functions_over_one_another_run_in_processes_of_their_own(numbers: Any) -> None:
    first = sparkinfer.map_batches(numbers, functions.says_process)
    second = sparkinfer.map_batches(first, functions.says_last_process, batch_size=10)
    rows = rows_of(second)
    assert [row["id"] for row in rows] == list(range(100))
    assert not {row["process"] for row in rows} & {row["last_process"] for row in rows}
    third = sparkinfer.map_batches(second.where("id < 50"), functions.same)
    assert [row["id"] for row in rows_of(third)] == list(range(50))


def test_a_function_over_a_cached_result_is_given_its_rows(numbers: Any) -> None:
    drawn = sparkinfer.map_batches(numbers, functions.draws, schema="id long, drawn double").cache()
    again = sparkinfer.map_batches(drawn, functions.same, schema="id long, drawn double")
    assert rows_of(again) == rows_of(drawn)


def test_a_function_over_another_is_given_the_columns_that_the_other_has(numbers: Any) -> None:
    first = sparkinfer.map_batches(numbers, functions.tenths, schema="id int, tenth float")
    apart = first.where("true")
    for one in (first, apart):
        found = sparkinfer.map_batches(one, functions.says_types, schema="kinds string")
        assert {row.kinds for row in found.collect()} == {"id int32 tenth float32"}


def test_functions_of_one_task_do_not_wait_for_each_others_cores(spark: Any) -> None:
    cores = spark.sparkContext.defaultParallelism
    # More than the pipes between the workers of a task hold.
    df = spark.range(400).selectExpr("id", "repeat('x', 100000) as text").coalesce(1)
    options = {"batch_size": 10, "num_cpus": cores, "schema": "id long, text string"}
    first = sparkinfer.map_batches(df, functions.same, **options)
    second = sparkinfer.map_batches(first.where("id >= 0"), functions.same, **options)
    counts: list[int] = []
    job = threading.Thread(target=lambda: counts.append(second.count()), daemon=True)
    job.start()
    job.join(60)
    spark.sparkContext.cancelAllJobs()
    assert counts == [400]


def test_a_job_over_a_dataframe_gives_the_same_rows(numbers: Any, tmp_path: Path) -> None:
    lazy = rows_of(sparkinfer.map_batches(numbers, functions.twice))
    config = sparkinfer.ScoringConfig(fn=functions.twice, output=str(tmp_path / "out"))
    result = sparkinfer.run(config, df=numbers)
    found = rows_of(numbers.sparkSession.read.parquet(str(tmp_path / "out")).drop("error"))
    assert result.rows == len(lazy) == 200
    key = lambda row: (row["id"], row["copy"])  # noqa: E731
    assert sorted(found, key=key) == sorted(lazy, key=key)


# What follows is written as Ray Data's guides have it.


class HuggingFacePredictor:
    """Source: the batch inference guide of Ray Data, with a path in place of the model's name."""

    def __init__(self, model: str) -> None:
        from transformers import pipeline

        self.model = pipeline("text-generation", model=model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        predictions = self.model(list(batch["data"]), max_length=20, num_return_sequences=1)
        batch["output"] = [sequences[0]["generated_text"] for sequences in predictions]
        return batch


def test_a_predictor_of_ray_data_runs_as_it_is(spark: Any, tmp_path: Path) -> None:
    model = make_generator(tmp_path / "gpt2", "gpt2")
    prompts = ["Complete this", "for me"]
    df = spark.createDataFrame([(prompt,) for prompt in prompts], "data string")
    predictions = sparkinfer.map_batches(
        df,
        HuggingFacePredictor,
        fn_constructor_args=[str(model)],
        compute=ActorPoolStrategy(size=2),
    )
    rows = {row.data: row.output for row in predictions.collect()}
    assert set(rows) == set(prompts)
    assert all(output.startswith(prompt) for prompt, output in rows.items())


def test_a_batch_may_be_a_whole_partition(spark: Any) -> None:
    def assert_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert len(batch["id"]) == 1000, len(batch["id"])
        return batch

    df = spark.range(1000).repartition(1)
    assert sparkinfer.map_batches(df, assert_batch, schema="id long").count() == 1000
    tens = sparkinfer.map_batches(df, functions.counts_rows, batch_size=10, schema="rows int")
    assert [row.rows for row in tens.collect()] == [10] * 100


def test_only_so_many_workers_with_several_cores_run_on_a_host(tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "cluster").mkdir()
    with StandaloneCluster(tmp_path / "cluster", num_workers=1, cores=6) as cluster:
        found = run_driver(cluster, limited_by_cpus, {"folder": str(tmp_path / "seen")})
    assert found["rows"] == 24
    assert found["unlimited"] > 3
    assert found["limited"] == 3  # 6 cores, 2 for each


def limited_by_cpus(spark, folder):  # type: ignore[no-untyped-def]
    import sparkinfer
    from tests.made_up_functions import CountsAtOnce

    df = spark.range(24).repartition(6)
    schema = "id long, seen int"

    def most(expected, **more):  # type: ignore[no-untyped-def]
        arguments = {"fn_constructor_args": [folder, expected], "schema": schema}
        result = sparkinfer.map_batches(df, CountsAtOnce, **arguments, **more).collect()
        return len(result), max(row.seen for row in result)

    rows, unlimited = most(4)
    _, limited = most(3, num_cpus=2)
    return {"rows": rows, "unlimited": unlimited, "limited": limited}
