"""Embeddings under every engine: columns, rows without a text, runs that are gone on with."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import ConfigError, ModelLoadError, ResumeError
from tests.engines.conftest import Run
from tests.engines.test_suite import write
from tests.sentence_models import (
    NORMALIZE,
    WIDTH,
    add_sentence_files,
    dense,
    make_encoder,
    pooling,
    write_json,
)
from tests.tiny_models import sentences

PROMPTS = {"prompts": {"query": "i loved the plot ", "passage": "film "}}
NUMBERS = 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a dense layer and prompts, of which none counts in the pooling."""
    folder = make_encoder(tmp_path / "model")
    modules = pooling("mean", "max", include_prompt=False), dense(2 * WIDTH, NUMBERS), NORMALIZE
    return add_sentence_files(folder, *modules, whole=PROMPTS)


def reference(model: Path, texts: list[str], **options: Any) -> Any:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(model), device="cpu").encode(texts, **options)


def vectors(frame: pa.Table) -> Any:
    return np.array(frame["embedding"].to_pylist(), np.float32)


def assert_same(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) >= 0.99999 * lengths).all()


@pytest.mark.parametrize("prompt_name", [None, "query"])
def test_each_row_has_the_librarys_vector(
    run: Run, model: Path, tmp_path: Path, prompt_name: str | None
) -> None:
    texts = sentences(203)
    task = {"name": "embedding"} | ({"prompt_name": prompt_name} if prompt_name else {})
    source = write(tmp_path / "in.parquet", list(texts))
    chunks = {"target_rows": 100}
    result, frame = run(source, model=str(model), task=task, chunks=chunks)
    assert (result.rows, result.error_rows) == (203, 0)
    assert frame["id"].to_pylist() == list(range(203))
    assert frame["text"].to_pylist() == texts
    assert_same(vectors(frame), reference(model, texts, prompt_name=prompt_name))
    assert result.metrics is None or not result.metrics


def test_the_columns_are_those_of_the_task(run: Run, model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", ["good", "bad"])
    _, frame = run(source, model=str(model), task="sentence-similarity", output_prefix="e_")
    kinds = dict(zip(frame.schema.names, frame.schema.types, strict=True))
    element = kinds.pop("e_embedding")
    assert pa.types.is_list(element)
    assert element.value_type == pa.float32()
    assert kinds == {
        **{"id": pa.int64(), "text": pa.string()},
        **{"e_n_tokens": pa.int32(), "e_truncated": pa.bool_(), "e_error": pa.string()},
    }


@pytest.mark.spark
def test_spark_reads_an_array_of_floats(
    engine: str, run: Run, model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run(write(tmp_path / "in.parquet", ["good"]), model=str(model), task="embedding")
    spark = request.getfixturevalue("spark")
    frame = spark.read.parquet(str(tmp_path / "out"))
    assert frame.schema["embedding"].dataType.simpleString() == "array<float>"
    assert len(frame.first()["embedding"]) == NUMBERS


def test_rows_without_a_text_keep_their_place(run: Run, model: Path, tmp_path: Path) -> None:
    spoiled = [b"good", b"caf\xe9 good", None, b"", b"word " * 1000, b"good"]
    text = pa.array(spoiled, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": range(6), "text": text}), tmp_path / "in.parquet")
    result, frame = run(str(tmp_path / "in.parquet"), model=str(model), task="embedding")
    reason = "text is not valid UTF-8 (byte 0xe9 at 3)"
    assert frame["error"].to_pylist() == [None, reason, "text is null", None, None, None]
    assert result.error_rows == 2
    assert frame["n_tokens"].to_pylist() == [3, None, None, 2, 64, 3]
    assert frame["truncated"].to_pylist() == [False, None, None, False, True, False]
    assert frame["embedding"].is_null().to_pylist() == [False, True, True, False, False, False]
    there = frame.filter(frame["embedding"].is_valid())
    assert_same(vectors(there), reference(model, ["good", "", "word " * 1000, "good"]))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another prompt": ({"prompt_name": "passage"}, "task.prompt_name was 'query', is 'passage'"),
    "the prompt's text": ({"prompt": "i loved the plot "}, "task.prompt was None, is 'i loved"),
    "fewer numbers": ({"prompt_name": "query", "truncate_dim": 8}, "task.truncate_dim was None"),
    "length 1": ({"prompt_name": "query", "normalize": True}, "task.normalize was None, is True"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("engine", ["local"])
def test_a_run_with_other_options_is_not_gone_on_with(
    run: Run, model: Path, tmp_path: Path, change: str
) -> None:
    source = write(tmp_path / "in.parquet", ["good"] * 4)
    first = {"name": "embedding", "prompt_name": "query"}
    run(source, model=str(model), task=first)
    options, expected = CHANGES[change]
    with pytest.raises(ResumeError, match=expected):
        run(source, model=str(model), task={"name": "feature-extraction", **options})
    result, _ = run(source, model=str(model), task={**first, "name": "feature-extraction"})
    assert result.rows_before == 4


@pytest.mark.parametrize("engine", ["local"])
def test_a_run_with_other_files_is_not_gone_on_with(run: Run, model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", ["good"] * 4)
    run(source, model=str(model), task="embedding")
    whole = {**PROMPTS, "default_prompt_name": "query"}
    write_json(model / "config_sentence_transformers.json", whole)
    with pytest.raises(ResumeError, match="model_fingerprint was"):
        run(source, model=str(model), task="embedding")


def test_a_run_goes_on_with_a_larger_input(run: Run, model: Path, tmp_path: Path) -> None:
    texts = sentences(120)
    (tmp_path / "in").mkdir()
    task = {"name": "embedding", "prompt_name": "query"}
    job = {"model": str(model), "task": task, "incremental": True}
    write(tmp_path / "in" / "a.parquet", list(texts[:70]))
    run(str(tmp_path / "in"), **job)
    late = pa.table({"id": pa.array(range(70, 120), pa.int64()), "text": texts[70:]})
    pq.write_table(late, tmp_path / "in" / "b.parquet")
    other = {**task, "prompt_name": "passage"}
    with pytest.raises(ResumeError, match=r"task\.prompt_name was 'query', is 'passage'"):
        run(str(tmp_path / "in"), **{**job, "task": other})
    result, frame = run(str(tmp_path / "in"), **job)
    assert (result.rows, result.rows_before) == (120, 70)
    assert_same(vectors(frame), reference(model, texts, prompt_name="query"))


@pytest.mark.parametrize("engine", ["local"])
def test_the_manifest_says_what_options_and_files_came_to(
    run: Run, model: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.parquet", ["good"])
    result, _ = run(source, model=str(model), task={"name": "embedding", "prompt_name": "query"})
    assert result.verdict.task["prompt"] == "i loved the plot "
    written = next((tmp_path / "out" / "_sparkinfer").rglob("*manifest*.json")).read_text()
    assert '"task.resolved.prompt": "i loved the plot "' in written
    assert '"task.resolved.layers"' in written


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "two prompts": ({"prompt": "a", "prompt_name": "query"}, ConfigError, "give one of them"),
    "unknown prompt": ({"prompt_name": "title"}, ConfigError, "name the prompts query, document"),
    "another pooling": ({"pooling": "cls"}, ConfigError, "this model's files say"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("engine", ["local"])
def test_a_wrong_option_is_refused_before_anything_is_written(
    run: Run, model: Path, tmp_path: Path, case: str
) -> None:
    options, kind, expected = WRONG[case]
    source = write(tmp_path / "in.parquet", ["good"])
    with pytest.raises(kind, match=expected):
        run(source, model=str(model), task={"name": "embedding", **options})
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize("engine", ["local"])
def test_an_unknown_module_is_refused_before_anything_is_written(
    run: Run, model: Path, tmp_path: Path
) -> None:
    modules = model / "modules.json"
    modules.write_text(modules.read_text().replace("models.Normalize", "models.CNN"))
    source = write(tmp_path / "in.parquet", ["good"])
    with pytest.raises(ModelLoadError, match="names the module 'sentence_transformers.models.CNN'"):
        run(source, model=str(model), task="embedding")
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with_and_each_row_is_there_once(
    model: Path, tmp_path: Path
) -> None:
    texts = [f"{text} {number}" for number, text in enumerate(sentences(3000))]
    source = write(tmp_path / "in.parquet", list(texts))
    command = [
        *(sys.executable, "-m", "sparkinfer", "score", "--engine", "local", "--task", "embedding"),
        *("--model", str(model), "--input", str(source), "--output", str(tmp_path / "out")),
        *("--input-col", "text", "--dtype", "float32", "--device", "cpu"),
        *("--set", "task.prompt_name=query", "--set", "chunks.target_rows=100"),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((tmp_path / "out").glob("*.parquet")):
            time.sleep(0.02)
        process.kill()
    done = ids_of(tmp_path / "out")
    assert 0 < len(done) < 3000
    other = [word.replace("=query", "=passage") for word in command]
    refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert "task.prompt_name was 'query', is 'passage'" in refused.stderr
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert ids_of(tmp_path / "out") == list(range(3000))
    frame = pads.dataset(tmp_path / "out", format="parquet").to_table().sort_by("id")
    assert_same(vectors(frame), reference(model, texts, prompt_name="query"))


def ids_of(output: Path) -> list[int]:
    table = pads.dataset(output, format="parquet").to_table(columns=["id"])
    return sorted(table["id"].to_pylist())
