from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.dataset as pads
import pytest

import sparkinfer
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, JobError
from sparkinfer.jobs.committer import Committer
from tests.standalone_cluster import StandaloneCluster, run_driver
from tests.tiny_models import sentences

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark


@pytest.fixture
def df(spark: SparkSession) -> DataFrame:
    # Distinct texts: equal ones would go through the model once.
    rows = [(number, f"{text} {number}") for number, text in enumerate(sentences(300))]
    return spark.createDataFrame(pd.DataFrame(rows, columns=["id", "text"]))


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which each call of a worker's model leaves a mark with its number of rows."""
    marks = tmp_path / "marks"
    marks.mkdir()

    def count() -> None:
        import uuid

        from sparkinfer.models.running import RunningModel

        if not hasattr(RunningModel, "uncounted"):
            RunningModel.uncounted = RunningModel.run  # type: ignore[attr-defined]

        def score(self: Any, inputs: Any, *_: Any) -> Any:
            (marks / uuid.uuid4().hex).write_text(str(len(inputs["input_ids"])))
            return self.uncounted(inputs)

        RunningModel.run = score  # type: ignore[method-assign]

    before_tasks(monkeypatch, count)
    return marks


def before_tasks(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Has the process of a task call a function before it scores, lazily or for a chunk."""
    from sparkinfer.engines import scoring_udf, spark_chunks

    def after(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            act()
            return original(*args)

        return run

    for module, name in ((scoring_udf, "score_partition"), (spark_chunks, "write_share")):
        monkeypatch.setattr(module, name, after(getattr(module, name)))


def rows_through_the_model(marks: Path) -> int:
    return sum(int(mark.read_text()) for mark in marks.iterdir())


def options(classifier: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(classifier), "input_col": "text", "dtype": "float32", **more}


def test_score_is_lazy_and_scores_each_row_once(
    df: DataFrame, classifier: Path, counted: Path
) -> None:
    scored = sparkinfer.score(df, **options(classifier))
    assert rows_through_the_model(counted) == 0
    frame = scored.toPandas()
    assert rows_through_the_model(counted) == 300
    assert sorted(frame["id"]) == list(range(300))


def test_an_expression_a_template_and_a_column_make_the_same_text(
    df: DataFrame, classifier: Path
) -> None:
    from pyspark.sql import functions as F

    two = df.withColumn("first", F.lit("the film was")).withColumn("second", F.col("text"))
    two = two.withColumn("whole", F.concat_ws(" ", "first", "second"))
    found = []
    for text in (
        {"input_col": "whole"},
        {"input_col": F.concat_ws(" ", "first", "second")},
        {"input_template": "{first} {second}"},
    ):
        scored = sparkinfer.score(two, **{**options(classifier), "input_col": None, **text})
        assert scored.columns[: len(two.columns)] == two.columns
        assert not [name for name in scored.columns if name.startswith("__")]
        found.append(
            [one for row in sorted(scored.select("id", "probability").collect()) for one in row]
        )
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_score_refuses_another_engine(df: DataFrame, classifier: Path) -> None:
    with pytest.raises(ConfigError, match="engine='horovod' with score: .*sparkinfer.run"):
        sparkinfer.score(df, **options(classifier, engine="horovod"))


@pytest.mark.parametrize(
    "use",
    [
        lambda scored: scored.select("prediction", "probability", "probabilities", "error"),
        lambda scored: scored.where("probability > 0.1 and error is null").select("id"),
        lambda scored: scored.withColumn("p", scored.probability * 2).where("p > 0 or p is null"),
        lambda scored: scored.groupBy("prediction").agg({"probability": "avg", "n_tokens": "sum"}),
    ],
    ids=["fields", "filter", "derived", "aggregate"],
)
def test_each_row_is_scored_once_however_many_fields_are_used(
    df: DataFrame, classifier: Path, counted: Path, use: Any
) -> None:
    use(sparkinfer.score(df, **options(classifier))).collect()
    assert rows_through_the_model(counted) == 300


def test_carried_columns_are_not_shipped_to_python(df: DataFrame, classifier: Path) -> None:
    from pyspark.sql import functions as F

    wide = df.withColumn("blob", F.repeat(F.lit("x"), 1000))
    scored = sparkinfer.score(wide, **options(classifier))
    plan = scored._jdf.queryExecution().executedPlan().toString()
    [evaluated] = [line for line in plan.splitlines() if "ArrowEvalPython" in line]
    arguments = evaluated.split("[", 1)[1].split("]", 1)[0]
    assert arguments.startswith("score(cast(text#")
    assert "blob" not in arguments


def test_a_limit_does_not_score_the_whole_table(
    spark: SparkSession, classifier: Path, counted: Path
) -> None:
    rows = pd.DataFrame({"text": [f"film {number}" for number in range(60_000)]})
    large = spark.createDataFrame(rows).coalesce(1)
    scored = sparkinfer.score(large, num_workers=1, **options(classifier))
    assert len(scored.limit(5).collect()) == 5
    assert 5 <= rows_through_the_model(counted) < 6_000


def test_run_executes_the_plan_of_a_non_file_input_once(
    spark: SparkSession, df: DataFrame, classifier: Path, tmp_path: Path, counted: Path
) -> None:
    df.createOrReplaceTempView("reviews")
    config = sparkinfer.ScoringConfig(
        input="reviews", output=str(tmp_path / "out"), **options(classifier)
    )
    result = sparkinfer.run(config, spark)
    assert result.rows == rows_through_the_model(counted) == 300
    assert result.statistics.rows == 300
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2
    assert result.workers.count == 2


def test_a_dataframe_is_a_job_that_can_be_broken_off(
    spark: SparkSession, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = tmp_path / "evaluated"
    evaluated.mkdir()

    def note(batches: Any) -> Any:
        import uuid

        for batch in batches:
            (evaluated / uuid.uuid4().hex).write_text(str(len(batch)))
            yield batch

    rows = pd.DataFrame({"id": range(90), "text": sentences(90)})
    df = spark.createDataFrame(rows).coalesce(1).mapInPandas(note, "id long, text string")
    config = sparkinfer.ScoringConfig(
        output=str(tmp_path / "out"), chunks={"target_rows": 30}, **options(classifier)
    )
    commit = Committer.commit

    def fail_at_2(self: Committer, scored: Any) -> None:
        if scored.chunk.number == 2:
            raise JobError("broken off")
        commit(self, scored)

    with monkeypatch.context() as patched:
        patched.setattr(Committer, "commit", fail_at_2)
        with pytest.raises(JobError, match="broken off"):
            sparkinfer.run(config, df=df)
    result = sparkinfer.run(config, df=df)
    assert result.rows == 90
    assert result.rows_before in (0, 30, 60)  # of three that are committed at once
    scored = pads.dataset(config.output, format="parquet").to_table().sort_by("id").to_pydict()
    assert scored["id"] == list(range(90))
    assert scored["text"] == rows["text"].tolist()
    # Copied once; before the second run goes on, compared with the copy.
    assert sum(int(mark.read_text()) for mark in evaluated.iterdir()) == 180


def test_carried_columns_keep_sparks_types_and_values(
    spark: SparkSession, classifier: Path, tmp_path: Path
) -> None:
    from pyspark.ml.linalg import Vectors

    # pandas writes times without a zone, which Spark 3.5 has a type for and Arrow no second one.
    times = pd.date_range("2020-01-01 12:00:00", periods=3, freq="D").astype("datetime64[us]")
    frame = pd.DataFrame({"id": [0, 1, 2], "text": ["good", "bad", "red"], "at": times})
    # pandas 1.5 has them in nanoseconds alone.
    frame.to_parquet(tmp_path / "in.parquet", coerce_timestamps="us")
    df = spark.read.parquet(str(tmp_path / "in.parquet"))
    vectors = spark.createDataFrame([(i, Vectors.dense([i, 0.5])) for i in range(3)], ["id", "v"])
    df = df.join(vectors, "id")
    config = sparkinfer.ScoringConfig(output=str(tmp_path / "out"), **options(classifier))
    sparkinfer.run(config, df=df)
    scored = spark.read.parquet(config.output).select(*df.columns)
    assert [f.dataType for f in scored.schema] == [f.dataType for f in df.schema]
    assert scored.orderBy("id").collect() == df.orderBy("id").collect()


def test_a_metric_that_workers_do_not_find_is_refused_before_anything_is_scored(
    spark: SparkSession,
    df: DataFrame,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "only_here.py").write_text(
        "class Nothing:\n"
        "    name = 'nothing'\n"
        "    def __init__(self, labels): pass\n"
        "    def update(self, rows): pass\n"
        "    def state(self): return {}\n"
        "    def merge(self, state): pass\n"
        "    def compute(self): return {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "here")
    config = sparkinfer.ScoringConfig(
        output=str(tmp_path / "out"),
        label_col="id",
        metrics=("only_here:Nothing",),
        **options(classifier),
    )
    with pytest.raises(ConfigError, match="only_here:Nothing.*ModuleNotFoundError"):
        sparkinfer.run(config, df=df)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"input": "reviews"}, "input='reviews' with df"),
        ({"engine": "local"}, "engine='local' with df: a DataFrame is read by Spark"),
        ({"incremental": True}, "incremental=true with 'df', a DataFrame"),
    ],
)
def test_a_dataframe_with_what_does_not_go_with_it_is_refused(
    df: DataFrame, classifier: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    config = sparkinfer.ScoringConfig(output=str(tmp_path / "out"), **options(classifier, **more))
    with pytest.raises(ConfigError, match=message):
        sparkinfer.run(config, df=df)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"output": "out"},
        {"overwrite": True},
        {"label_col": "id"},
        {"incremental": True},
        {"retry_errors": True},
        {"max_error_rows": 3},
        {"chunks": {"target_rows": 3}},
        {"master": "local[2]"},
    ],
)
def test_an_option_that_does_nothing_for_a_lazy_dataframe_is_refused(
    df: DataFrame, classifier: Path, given: dict[str, Any]
) -> None:
    [name] = given
    with pytest.raises(ConfigError, match=f"^{name} with score: .*sparkinfer.run"):
        sparkinfer.score(df, **options(classifier, **given))


def test_more_workers_than_slots_run_in_waves(
    spark: SparkSession, df: DataFrame, classifier: Path, tmp_path: Path
) -> None:
    df.createOrReplaceTempView("reviews")
    config = sparkinfer.ScoringConfig(
        input="reviews", output=str(tmp_path / "out"), num_workers=3, **options(classifier)
    )
    result = sparkinfer.run(config, spark)
    assert result.rows == 300
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_one_python_worker_loads_the_model_once(
    df: DataFrame, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparkinfer.engines import scoring_udf

    log = tmp_path / "pids"
    log.mkdir()
    original = scoring_udf.score_partition

    def noting(job: Any, batches: Any) -> Any:
        import os
        import uuid

        from sparkinfer.models import processor
        from sparkinfer.workers import resident

        if not hasattr(processor, "counted_loads"):
            load = processor.load_way
            processor.counted_loads = 0  # type: ignore[attr-defined]

            def count(*args: Any) -> Any:
                processor.counted_loads += 1  # type: ignore[attr-defined]
                return load(*args)

            processor.load_way = count
        yield from original(job, batches)
        loads = processor.counted_loads  # type: ignore[attr-defined]
        (log / uuid.uuid4().hex).write_text(f"{os.getpid()} {loads} {len(resident._kept)}")

    monkeypatch.setattr(scoring_udf, "score_partition", noting)
    scored = sparkinfer.score(df, num_workers=6, **options(classifier))
    scored.collect()
    seen = [file.read_text().split() for file in log.iterdir()]
    assert len(seen) == 6
    assert {(loads, models) for _, loads, models in seen} <= {("0", "1"), ("1", "1")}
    assert len({pid for pid, _, _ in seen}) <= 3


def test_a_process_that_has_a_model_is_the_only_one_of_its_task(
    spark: SparkSession, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several chunks with carried columns: as many processes and loads as workers."""
    log = tmp_path / "loads"
    log.mkdir()

    def note() -> None:
        import os
        import uuid

        from sparkinfer.models import processor

        (log / f"process-{os.getpid()}").touch()
        if not hasattr(processor, "unnoted"):
            processor.unnoted = processor.load_way  # type: ignore[attr-defined]

        def load(*args: Any) -> Any:
            (log / f"load-{uuid.uuid4().hex}").touch()
            return processor.unnoted(*args)  # type: ignore[attr-defined]

        processor.load_way = load

    before_tasks(monkeypatch, note)
    source = tmp_path / "in.parquet"
    texts = [f"{text} {number}" for number, text in enumerate(sentences(1800))]
    frame = pd.DataFrame({"id": range(1800), "text": texts, "blob": "x" * 500})
    frame.to_parquet(source, row_group_size=300)
    config = sparkinfer.ScoringConfig(
        input=str(source),
        output=str(tmp_path / "out"),
        chunks={"target_rows": 300},
        **options(classifier),
    )
    result = sparkinfer.run(config, spark)
    assert (result.rows, result.workers.count) == (1800, 2)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 12
    noted = [file.name.partition("-")[0] for file in log.iterdir()]
    assert 1 <= noted.count("process") <= 2
    assert noted.count("load") <= noted.count("process")


def test_a_worker_that_fails_for_good_is_one_line(
    spark: SparkSession,
    df: DataFrame,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> None:
        raise ValueError("the disk of this node is gone")

    before_tasks(monkeypatch, broken)
    df.createOrReplaceTempView("reviews")
    config = sparkinfer.ScoringConfig(
        input="reviews", output=str(tmp_path / "out"), **options(classifier)
    )
    with pytest.raises(JobError) as raised:
        sparkinfer.run(config, spark)
    assert raised.value.message == "ValueError: the disk of this node is gone"
    assert not any((tmp_path / "out").glob("*.parquet"))
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_gpu_that_is_not_there_is_an_error(df: DataFrame, classifier: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="2 GPU"):
        sparkinfer.score(df, **options(classifier, device="cuda", num_workers=2))


def drive_run(spark: object, model: str, folder: str, source: str, output: str) -> dict:
    import os

    import sparkinfer

    os.chdir(folder)  # relative paths mean this folder on the executors, too
    config = sparkinfer.ScoringConfig(
        model=model, input=source, output=output, input_col="text", dtype="float32"
    )
    result = sparkinfer.run(config, spark)
    return {
        "rows": result.rows,
        "workers": result.workers.count,
    }


def test_a_standalone_cluster_gives_the_rows_of_local(
    standalone_cluster: StandaloneCluster, classifier: Path, tmp_path: Path
) -> None:
    texts = sentences(401)
    source = tmp_path / "in.parquet"
    pd.DataFrame({"id": range(401), "text": texts}).to_parquet(source)
    local = sparkinfer.ScoringConfig(
        input=str(source), output=str(tmp_path / "local"), engine="local", **options(classifier)
    )
    sparkinfer.run(local)
    output = str(tmp_path / "cluster")
    model, folder = str(classifier), str(tmp_path)
    args = {"model": model, "folder": folder, "source": "in.parquet", "output": "cluster"}
    said = run_driver(standalone_cluster, drive_run, args)
    assert said == {"rows": 401, "workers": 2}
    assert len(list(Path(output).glob("*.parquet"))) == 2
    frames = [
        pads.dataset(path, format="parquet").to_table().to_pandas().sort_values("id")
        for path in (str(tmp_path / "local"), output)
    ]
    assert frames[0]["id"].tolist() == frames[1]["id"].tolist() == list(range(401))
    assert frames[0]["prediction"].tolist() == frames[1]["prediction"].tolist()
    assert frames[0]["probability"].tolist() == pytest.approx(
        frames[1]["probability"].tolist(), abs=1e-5
    )
