"""Several models in one read, under every engine: the rows of as many runs, from one reading."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.exceptions import ConfigError, InputError, ResumeError
from sparkinfer.models.tokens import Encoder
from sparkinfer.plan.processors import PROCESSORS
from tests import made_up_function
from tests.engines.conftest import Run
from tests.engines.test_suite import metadata_by_column, write
from tests.tiny_models import make_classifier, sentences

PROCESSORS.pop("shout", None)

SCORED = ["prediction", "probability", "probabilities", "n_tokens", "truncated", "error"]


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint with the same tokenizer: three labels, fewer layers, other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    return make_classifier(folder, labels=("red", "green", "blue"), type_vocab_size=3)


@pytest.fixture(scope="session")
def cased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with another tokenizer: one that cuts texts at 16 tokens of its own."""
    folder = tmp_path_factory.mktemp("models") / "cased"
    make_classifier(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def models_of(**paths: Any) -> dict[str, Any]:
    return {
        name: {"model": str(path)} if isinstance(path, Path) else path
        for name, path in paths.items()
    }


def columns_of(frame: pa.Table, prefix: str = "") -> dict[str, list[Any]]:
    return {name: frame[prefix + name].to_pylist() for name in SCORED}


def assert_same(
    found: dict[str, list[Any]], expected: dict[str, list[Any]], abs_error: float = 0.0
) -> None:
    """Fails unless the columns are the same, probabilities up to an error."""
    for name in SCORED:
        if abs_error == 0.0 or not name.startswith("probabilit"):
            assert found[name] == expected[name]
            continue
        for one, other in zip(found[name], expected[name], strict=True):
            assert one == (None if other is None else pytest.approx(other, abs=abs_error))


def alone(run: Run, tmp_path: Path, source: Any, model: Path, **options: Any) -> pa.Table:
    """Returns the rows of a run with one model."""
    output = str(tmp_path / f"alone-{model.name}-{len(list(tmp_path.iterdir()))}")
    return run(source, model=str(model), output=output, **options)[1]


@pytest.mark.parametrize(
    ("engine", "count"),
    [
        ("local", 1),
        ("local", 503),
        pytest.param("pandas_udf", 503, marks=pytest.mark.spark),
        pytest.param("horovod", 503, marks=[pytest.mark.spark, pytest.mark.slow]),
    ],
)
def test_each_model_gives_what_it_gives_alone(
    run: Run,
    engine: str,
    tmp_path: Path,
    classifier: Path,
    other: Path,
    cased: Path,
    count: int,
) -> None:
    texts: list[str | None] = list(sentences(count))
    texts[3:5] = [None, "GOOD film " * 50][: max(0, count - 3)]
    source = write(tmp_path / "in.parquet", texts)
    models = models_of(
        a=classifier, b={"model": str(other), "max_length": 9}, c={"model": str(cased)}
    )
    result, frame = run(source, model=None, models=models, chunks={"target_rows": 200})
    assert frame.column_names == ["id", "text", *(f"{n}_{name}" for n in "abc" for name in SCORED)]
    assert frame["id"].to_pylist() == list(range(count))
    assert frame["text"].to_pylist() == texts
    nulls = sum(text is None for text in texts)
    assert (result.rows, result.error_rows, result.statistics.rows) == (count, nulls, count)
    for prefix, model, options in (
        ("a_", classifier, {}),
        ("b_", other, {"max_length": 9}),
        ("c_", cased, {}),
    ):
        expected = alone(run, tmp_path, source, model, chunks={"target_rows": 200}, **options)
        # Ranks batch rows of like length, which is that of all tokenizers together.
        rounding = 1e-5 if engine == "horovod" else 0.0
        assert_same(columns_of(frame, prefix), columns_of(expected), rounding)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the texts that are tokenised; only in this process."""
    texts: Counter[str] = Counter()
    encode = Encoder._encode

    def counting(self: Encoder, columns: Any, asked: Any) -> Any:
        texts.update(columns[0])
        return encode(self, columns, asked)

    monkeypatch.setattr(Encoder, "_encode", counting)
    return texts


@pytest.mark.parametrize("engine", ["local"])
@pytest.mark.parametrize(("names", "times"), [("ab", 1), ("ac", 2), ("abc", 2)])
def test_each_text_is_tokenised_once_for_each_tokenizer(
    run: Run,
    tmp_path: Path,
    classifier: Path,
    other: Path,
    cased: Path,
    counted: Counter[str],
    names: str,
    times: int,
) -> None:
    texts = [f"film {number}" for number in range(300)]
    paths = {"a": classifier, "b": other, "c": cased}
    models = models_of(**{name: paths[name] for name in names})
    result, _ = run(write(tmp_path / "in.parquet", list(texts)), model=None, models=models)
    assert [counted[text] for text in texts] == [times] * 300
    assert len(result.verdict.encoded_alike) == times


@pytest.mark.parametrize("engine", ["local"])
def test_a_text_of_another_column_limit_or_template_is_tokenised_apart(
    run: Run, tmp_path: Path, classifier: Path, counted: Counter[str]
) -> None:
    texts = [f"film {number}" for number in range(100)]
    titles = pa.array([f"title {number}" for number in range(100)])
    source = write(tmp_path / "in.parquet", list(texts), title=titles)
    given: dict[str, dict[str, Any]] = {
        "same": {},
        "title": {"input_col": "title"},
        "short": {"max_length": 4},
        "both": {"input_template": "{title} {text}"},
    }
    models = {name: {"model": str(classifier), **one} for name, one in given.items()}
    models["again"] = {"model": str(classifier), "dtype": "float32"}
    result, frame = run(source, model=None, models=models)
    assert [counted[text] for text in texts] == [2] * 100
    assert counted["title 7"] == counted["title 7 film 7"] == 1
    assert result.verdict.encoded_alike == (("same", "again"), ("title",), ("short",), ("both",))
    assert frame["title_n_tokens"].to_pylist() != frame["both_n_tokens"].to_pylist()


@pytest.mark.parametrize("engine", ["local"])
def test_each_row_group_is_read_once(
    run: Run, tmp_path: Path, classifier: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[Any] = Counter()
    iter_batches = pq.ParquetFile.iter_batches

    def counting(self: Any, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        if len(args) > 1:  # rows are read by row group; what only looks at columns is not
            read.update((self.metadata.num_rows, group) for group in args[1])
        return iter_batches(self, *args, **options)

    source = write(tmp_path / "in.parquet", list(sentences(450)))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    run(source, model=None, models=models_of(a=classifier, b=other))
    assert {group: read[450, group] for group in range(5)} == dict.fromkeys(range(5), 1)


def test_each_model_has_metrics_and_columns_that_name_it(
    run: Run, tmp_path: Path, classifier: Path, other: Path
) -> None:
    texts = sentences(60)
    colour = pa.array([("red", "green", "blue")[row % 3] for row in range(60)])
    label = pa.array([row % 2 for row in range(60)])
    source = write(tmp_path / "in.parquet", list(texts), label=label, colour=colour)
    models = models_of(a=classifier, b={"model": str(other), "label_col": "colour"})
    result, _ = run(source, model=None, models=models, label_col="label")
    expected = {}
    for name, model, column in (("a", classifier, "label"), ("b", other, "colour")):
        output = str(tmp_path / f"alone-{name}")
        found, _ = run(source, model=str(model), output=output, label_col=column)
        expected |= {f"{name}.{metric}": value for metric, value in found.metrics.items()}
    assert dict(result.metrics) == pytest.approx(expected)
    assert result.metrics["a.labelled_rows"] == result.metrics["b.labelled_rows"] == 60
    metadata = metadata_by_column(next((tmp_path / "out").glob("*.parquet")))
    labels = {name: json.loads(metadata[f"{name}_prediction"]["sparkinfer"]) for name in "ab"}
    assert labels["a"]["labels"] == ["NEGATIVE", "POSITIVE"]
    assert labels["b"]["labels"] == ["red", "green", "blue"]


def test_a_function_over_rows_may_be_one_of_them(
    run: Run, tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROCESSORS, "shout", made_up_function.shout)
    titles = pa.array([*(f"film {row}" for row in range(149)), None])
    source = write(tmp_path / "in.parquet", list(sentences(150)), title=titles)
    models = {
        "loud": {"model": "none", "task": "shout", "input_col": "title"},
        "a": {"model": str(classifier)},
    }
    result, frame = run(source, model=None, models=models, carry_cols=("id",))
    assert frame["loud_shouted"].to_pylist() == [*(f"FILM {row}!" for row in range(149)), None]
    assert frame["a_error"].null_count == 150
    assert (result.rows, result.error_rows) == (150, 1)
    expected = alone(run, tmp_path, source, classifier)
    assert_same(columns_of(frame, "a_"), columns_of(expected), 1e-5)  # windows differ


def test_a_change_of_one_model_is_refused_by_its_name(
    run: Run, tmp_path: Path, classifier: Path, other: Path
) -> None:
    source = write(tmp_path / "in.parquet", list(sentences(20)))
    run(source, model=None, models=models_of(a=classifier, b=other))
    assert run(source, model=None, models=models_of(a=classifier, b=other))[0].rows_before == 20
    changed = models_of(a=classifier, b={"model": str(other), "max_length": 9})
    with pytest.raises(ResumeError, match=r"models.b.max_length was None, is 9\. Undo"):
        run(source, model=None, models=changed)
    with pytest.raises(ResumeError, match="models.b.model_fingerprint was"):
        run(source, model=None, models=models_of(a=classifier, b=classifier))
    with pytest.raises(ResumeError, match=r"models was \['a', 'b'\], is \['a'\]"):
        run(source, model=None, models=models_of(a=classifier))
    with pytest.raises(ResumeError, match="model_fingerprint is new"):
        run(source)


@pytest.mark.parametrize("engine", ["local"])
@pytest.mark.parametrize(
    ("sections", "error", "part"),
    [
        ({"b": {"input_col": "txt"}}, InputError, "models.b: input_col='txt': no such column"),
        ({"b": {"label_col": "y"}}, InputError, "models.b.label_col='y': no such column"),
        ({"b": {"task": "summarise"}}, ConfigError, "models.b: task='summarise'"),
        ({"b": {"max_length": 65}}, ConfigError, "models.b: max_length=65: this model takes"),
        ({"a": {"output_prefix": "b_"}}, ConfigError, "models.a and models.b have one output_pre"),
        (
            {"b": {"output_prefix": ""}},
            ConfigError,
            "error would be overwritten .* give --set models.b.output_prefix=scored_b_ or leave",
        ),
    ],
)
def test_a_wrong_section_is_refused_before_anything_is_written(
    run: Run,
    tmp_path: Path,
    classifier: Path,
    sections: dict[str, dict[str, Any]],
    error: type[Exception],
    part: str,
) -> None:
    source = write(tmp_path / "in.parquet", ["good"], error=pa.array(["x"]))
    models = {name: {"model": str(classifier), **sections.get(name, {})} for name in "ab"}
    with pytest.raises(error, match=part):
        run(source, model=None, models=models)
    assert not (tmp_path / "out").exists()


@pytest.mark.spark
def test_a_dataframe_is_scored_with_several_models_lazily(
    spark: Any, tmp_path: Path, classifier: Path, other: Path
) -> None:
    texts = [*sentences(60), None]
    source = write(tmp_path / "in.parquet", list(texts), title=pa.array(["film"] * 61))
    df = spark.read.parquet(str(source))
    models = {"a": str(classifier), "b": {"model": str(other), "input_template": "{title} {text}"}}
    scored = sparkinfer.score(df, input_col="text", models=models, dtype="float32")
    fields = [f"{name}_{column}" for name in "ab" for column in SCORED]
    assert scored.columns == ["id", "text", "title", *fields]
    found = pa.Table.from_pylist([row.asDict() for row in scored.orderBy("id").collect()])
    for name, text in (("a", {"input_col": "text"}), ("b", models["b"])):
        given = {"model": models["a"], **text}
        one = sparkinfer.score(df, dtype="float32", **given).orderBy("id").collect()
        expected = pa.Table.from_pylist([row.asDict() for row in one])
        assert_same(columns_of(found, f"{name}_"), columns_of(expected))
    with pytest.raises(ConfigError, match=r"models\.b\.label_col with score: the option has no ef"):
        sparkinfer.score(df, input_col="text", models={"a": "x", "b": {"label_col": "label"}})
