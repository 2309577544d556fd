"""A pipeline of transformers that the package has no task for, under every engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.exceptions import ConfigError, ModelLoadError, ResumeError
from sparkinfer.plan.processors import PROCESSORS
from tests.engines.conftest import Run
from tests.made_up_pipeline import NAME, SpectrumPipeline, WithMadeUpPipeline
from tests.tiny_models import sentences

SCHEMA = "label string, logit double, all array<double>"
UNBORING = [text.replace("boring", "red") for text in sentences(70)]
"""Texts that the pipeline does not fail with."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROCESSORS, NAME, WithMadeUpPipeline.of)


@pytest.fixture
def expected(classifier: Path) -> Callable[[str], Any]:
    from transformers import pipeline

    pipe = pipeline(NAME, model=str(classifier), device="cpu")
    assert isinstance(pipe, SpectrumPipeline)

    def call(text: str) -> dict[str, Any]:
        found = pipe(text)
        return {**found, "logit": float(found["logit"]), "all": list(found["all"])}

    return call


def write(path: Path, texts: list[str | None]) -> Path:
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=30)
    return path


def check(row: dict[str, Any], expected: dict[str, Any], prefix: str = "") -> None:
    assert row[f"{prefix}error"] is None
    assert row[f"{prefix}label"] == expected["label"]
    assert row[f"{prefix}logit"] == pytest.approx(expected["logit"], abs=1e-4)
    assert row[f"{prefix}all"] == pytest.approx(expected["all"], abs=1e-4)
    assert (row[f"{prefix}n_tokens"], row[f"{prefix}truncated"]) == (None, None)


def test_rows_are_the_pipelines_with_inferred_columns(
    run: Run, tmp_path: Path, expected: Callable[[str], Any]
) -> None:
    texts: list[str | None] = [*UNBORING, None, "boring", "odd", "empty"]
    source = write(tmp_path / "in.parquet", texts)
    options = {"task": NAME, "output_prefix": "p_", "chunks": {"target_rows": 30}}
    result, frame = run(source, **options)
    assert frame.column_names[2:] == [
        f"p_{name}" for name in ("label", "logit", "all", "n_tokens", "truncated", "error")
    ]
    assert (result.rows, result.error_rows) == (74, 3)
    assert result.verdict.schema == SCHEMA
    rows = frame.to_pylist()
    for row in [*rows[:70], rows[73]]:
        check(row, expected(row["text"]), "p_")
    assert [row["p_error"] for row in rows[70:73]] == [
        "text is null",
        "pipeline: ValueError: it is boring",
        "pipeline: logit is a string, expected double; see task.schema",
    ]
    assert all(row["p_label"] is None for row in rows[70:73])
    assert run(source, **options)[0].rows_before == 74


def test_declared_columns_and_arguments_of_the_call(
    run: Run, tmp_path: Path, expected: Callable[[str], Any]
) -> None:
    source = write(tmp_path / "in.parquet", ["good film", "bad"])
    schema = "all array<float>, label string, logit float"
    task = {"name": NAME, "schema": schema, "call": {"scale": 2}}
    _, frame = run(source, task=task)
    assert frame.schema.field("logit").type == pa.float32()
    for row in frame.to_pylist():
        twice = expected(row["text"])
        twice |= {"logit": 2 * twice["logit"], "all": [2 * one for one in twice["all"]]}
        check(row, twice)
    with pytest.raises(ResumeError, match=r"task\.call was \{'scale': 2\}, is \{\}"):
        run(source, task={**task, "call": {}})
    with pytest.raises(ResumeError, match=r"task\.schema was "):
        run(source, task={**task, "schema": SCHEMA})


@pytest.mark.spark
@pytest.mark.parametrize("engine", ["pandas_udf"])
def test_it_may_be_one_of_several_models(
    run: Run, tmp_path: Path, classifier: Path, expected: Callable[[str], Any]
) -> None:
    source = write(tmp_path / "in.parquet", [*UNBORING[:40], None])
    models = {"p": {"model": str(classifier), "task": NAME}, "c": {"model": str(classifier)}}
    result, frame = run(source, model=None, models=models)
    assert (result.rows, result.error_rows) == (41, 1)
    assert result.verdict.models["p"].schema == SCHEMA
    for row in frame.to_pylist()[:40]:
        check(row, expected(row["text"]), "p_")
        assert row["c_prediction"] == row["p_label"]


@pytest.mark.parametrize("engine", ["local"])
def test_beside_other_models_its_columns_are_those_of_the_rows(
    run: Run, tmp_path: Path, classifier: Path
) -> None:
    source = write(tmp_path / "in.parquet", ["odd", "odd"])  # their logit is a text
    models = {"p": {"model": str(classifier), "task": NAME}, "c": {"model": str(classifier)}}
    result, frame = run(source, model=None, models=models)
    assert result.verdict.models["p"].schema == SCHEMA.replace("logit double", "logit string")
    assert frame["p_logit"].to_pylist() == ["much", "much"]


@pytest.mark.spark
def test_columns_are_inferred_from_the_rows_of_a_dataframe(
    classifier: Path, tmp_path: Path, spark: Any, expected: Callable[[str], Any]
) -> None:
    texts = [*UNBORING, "odd"]
    df = spark.createDataFrame(
        [(row, text) for row, text in enumerate(texts)], "id int, text string"
    )
    options: dict[str, Any] = {"model": str(classifier), "input_col": "text", "task": NAME}
    scored = sparkinfer.score(df, **options).orderBy("id").collect()
    for row in scored[:-1]:
        check(row.asDict(), expected(row["text"]))
    assert scored[-1]["error"] == "pipeline: logit is a string, expected double; see task.schema"
    output = str(tmp_path / "out")
    result = sparkinfer.run(sparkinfer.ScoringConfig(output=output, **options), spark, df=df)
    assert (result.rows, result.error_rows, result.verdict.schema) == (71, 1, SCHEMA)
    with pytest.raises(ConfigError, match="no columns can be inferred from an input without a te"):
        sparkinfer.score(df.where("false"), **options)


@pytest.mark.parametrize("engine", ["local"])
def test_a_resumed_run_keeps_its_columns_and_errors_are_tried_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.parquet", ["good", "boring", "film"])
    run(source, task=NAME)

    def repair(self: Any, text: str) -> Any:
        return {**self.tokenizer(text, return_tensors="pt"), "text": text}

    monkeypatch.setattr(SpectrumPipeline, "preprocess", repair)
    result, frame = run(source, task=NAME, retry_errors=True)
    assert (result.retried_rows, result.recovered_rows, result.error_rows) == (1, 1, 0)
    assert frame["label"].null_count == 0


@pytest.mark.parametrize("engine", ["local"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "nothing-such"}, "task='nothing-such': expected one of embedding, "),
        ({"task": "image-classification"}, r"this pipeline reads other inputs \(image\)"),
        ({"task": "table-question-answering"}, "this pipeline reads a table with a question"),
        ({"task": {"name": NAME, "schema": "a text"}}, "task.schema='a text' at 'text': expected"),
        ({"task": {"name": NAME, "schema": {"a struct<b": "int>"}}}, "without a space after a"),
        ({"task": {"name": NAME, "schema": "error string"}}, "every row has a column of that name"),
        ({"task": {"name": NAME, "schema": "a int"}}, "fits no result of the pipeline: the result"),
        ({"task": {"name": NAME, "call": ["x"]}}, "task.call=.* expected a mapping of names"),
        ({"task": {"name": NAME, "columns": "x"}}, "unknown option .*task.columns"),
        ({"task": NAME, "dtype": "bfloat16"}, "dtype='bfloat16' with task='made-up-spectrum'"),
        ({"task": NAME, "max_length": 20}, "max_length=20 with task='made-up-spectrum'"),
        ({"task": NAME, "parallel": {"tensor": 2}}, "parallel with task='made-up-spectrum'"),
        ({"task": NAME, "text_pair_col": "id"}, "the task reads one text"),
    ],
)  # fmt: skip
def test_wrong_use_is_refused_before_the_start(
    run: Run, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source = write(tmp_path / "in.parquet", ["good"])
    with pytest.raises(ConfigError, match=message) as refused:
        run(source, **{"dtype": "auto", **options})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("engine", ["local"])
def test_an_inferred_column_does_not_overwrite_one_of_the_input(run: Run, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "text": ["good"], "Label": [1]}), tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match="Label would be overwritten"):
        run(tmp_path / "in.parquet", task=NAME)


@pytest.mark.parametrize("engine", ["local"])
def test_a_model_of_another_kind_is_refused(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", ["good"])
    task = {"name": "text-to-audio", "schema": "audio array<float>, sampling_rate int"}
    with pytest.raises(ModelLoadError, match="is a BertForSequenceClassification, expected .*for"):
        run(source, task=task)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["local"])
def test_a_pipeline_that_fails_with_every_text_is_refused(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", ["boring", "very boring"])
    with pytest.raises(ModelLoadError, match="fails with every text .*ValueError: it is boring"):
        run(source, task=NAME)


def test_what_a_processor_reads_is_part_of_the_model(classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(classifier, tmp_path / "model"))
    config = sparkinfer.ScoringConfig(
        model=str(folder), input="in", output="out", input_col="text", task=NAME
    )
    found = set()
    for content in ("{}", '{"rate": 1}'):
        (folder / "preprocessor_config.json").write_text(content)
        found.add(WithMadeUpPipeline.of(config).resolved().settings()["model_fingerprint"])
    assert len(found) == 2
