"""A vector store under every engine: the same ids, the library's neighbours, kills."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.cli import main
from sparkinfer.exceptions import ConfigError, OutputError
from tests.engines.conftest import Run
from tests.engines.test_suite import write
from tests.made_up_vectors import stored_in
from tests.sentence_models import NORMALIZE, add_sentence_files, make_encoder, pooling
from tests.tiny_models import make_classifier, sentences

PROMPTS = {"prompts": {"query": "i loved the plot ", "passage": "film "}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make_encoder(tmp_path / "model")
    return add_sentence_files(folder, pooling("mean"), NORMALIZE, whole=PROMPTS)


def reference(model: Path, texts: list[str], **options: Any) -> Any:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(model), device="cpu").encode(texts, **options)


def test_ids_are_chunk_and_place_under_every_engine(
    run: Run, model: Path, tmp_path: Path, vector_store: str
) -> None:
    texts = [None if row % 10 == 3 else text for row, text in enumerate(sentences(130))]
    source = write(tmp_path / "in.parquet", texts)
    vectors = {"store": vector_store, "metadata": ["id", "text"], "batch_rows": 17}
    result, frame = run(
        source, model=str(model), task="embedding", chunks={"target_rows": 50}, vectors=vectors
    )
    assert (result.rows, result.error_rows, result.vectors) == (130, 13, 117)
    starts = [0, *np.cumsum(chunk_rows(tmp_path / "out"))]
    expected = {
        f"{chunk:08d}-{row - start:08d}": row
        for chunk, (start, end) in enumerate(pairwise(starts))
        for row in range(start, end)
    }
    assert frame["row_id"].to_pylist() == list(expected)
    found = stored_in(vector_store)
    there = {name: row for name, row in expected.items() if texts[row] is not None}
    assert {name: one.metadata["id"] for name, one in found.items()} == there
    assert all(one.metadata["text"] == texts[one.metadata["id"]] for one in found.values())


def chunk_rows(output: Path) -> list[int]:
    records = sorted((output / "_sparkinfer" / "chunks").glob("*.json"))
    return [json.loads(path.read_text())["rows"] for path in records]


def test_a_search_finds_the_librarys_neighbours(
    run: Run, model: Path, tmp_path: Path, vector_store: str
) -> None:
    texts = list(dict.fromkeys(sentences(60)))
    source = write(tmp_path / "in.parquet", list(texts))
    vectors = {"store": vector_store, "key": "id", "metadata": ["text"]}
    task = {"name": "embedding", "prompt_name": "passage"}
    run(source, model=str(model), task=task, vectors=vectors)
    found = sparkinfer.search(vector_store, "a dull story", 5, model=str(model), dtype="float32")
    passages = reference(model, texts, prompt_name="passage")
    [query] = reference(model, ["a dull story"], prompt_name="query")
    distances = 1 - passages @ query
    nearest = np.argsort(distances)[:5]
    assert [one.distance for one in found] == pytest.approx(distances[nearest], abs=1e-5)
    assert [one.metadata["text"] for one in found] == [texts[place] for place in nearest]


@pytest.mark.parametrize("engine", ["local", pytest.param("pandas_udf", marks=pytest.mark.spark)])
def test_of_several_models_one_fills_the_store_with_what_another_says(
    run: Run, model: Path, tmp_path: Path, vector_store: str
) -> None:
    texts = list(dict.fromkeys(sentences(40)))
    models = {
        "e": {"model": str(model), "task": "embedding"},
        "c": str(make_classifier(tmp_path / "classes")),
    }
    vectors = {"store": vector_store, "key": "id", "metadata": ["c_prediction", "c_probability"]}
    _, frame = run(
        write(tmp_path / "in.parquet", list(texts)), model=None, models=models, vectors=vectors
    )
    found = stored_in(vector_store)
    assert {int(name) for name in found} == set(range(len(texts)))
    for name, label, score in zip(
        frame["id"].to_pylist(),
        frame["c_prediction"].to_pylist(),
        frame["c_probability"].to_pylist(),
        strict=True,
    ):
        assert found[str(name)].metadata == pytest.approx(
            {"c_prediction": label, "c_probability": score}
        )
    two = {**models, "d": {"model": str(model), "task": "embedding"}}
    with pytest.raises(ConfigError, match="with the models e, d: .*vectors.model=e"):
        run(str(tmp_path / "in.parquet"), model=None, models=two, vectors=vectors)


@pytest.mark.spark
def test_a_dataframe_and_a_query_fill_a_store(
    model: Path, tmp_path: Path, vector_store: str, spark: Any
) -> None:
    texts = sentences(50)
    df = spark.createDataFrame(list(enumerate(texts)), "id long, text string")
    config = sparkinfer.ScoringConfig(
        model=str(model),
        task="embedding",
        input_col="text",
        output=str(tmp_path / "out"),
        vectors={"store": vector_store, "metadata": ["id"]},
    )
    assert sparkinfer.run(config, df=df).vectors == 50
    assert sparkinfer.run(config, df=df).rows_before == 50
    found = stored_in(vector_store)
    assert sorted(one.metadata["id"] for one in found.values()) == list(range(50))
    df.createOrReplaceTempView("reviews")
    query = config.replace(input="select id, text from reviews where id < 20", overwrite=True)
    assert sparkinfer.run(query, spark).vectors == 20


@pytest.mark.parametrize(
    ("vector_store", "keyed"), [("chroma", True), ("postgresql", False)], indirect=["vector_store"]
)
def test_killed_runs_end_with_each_row_once(
    model: Path, tmp_path: Path, vector_store: str, keyed: bool
) -> None:
    texts = [f"{text} {number}" for number, text in enumerate(sentences(2000))]
    source = write(tmp_path / "in.parquet", list(texts))
    output = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "sparkinfer", "score", "--engine", "local", "--task", "embedding"),
        *("--model", str(model), "--input", str(source), "--output", str(output)),
        *("--input-col", "text", "--dtype", "float32", "--device", "cpu"),
        *("--set", "chunks.target_rows=100", "--set", "vectors.batch_rows=30"),
        *("--set", "vectors.metadata=id", "--vector-store", vector_store),
        *(("--set", "vectors.key=id") if keyed else ()),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(arrived(output)) < 3:
            time.sleep(0.01)
        process.kill()
    assert 3 <= len(arrived(output)) < 20
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    table = pads.dataset(output, format="parquet").to_table(columns=["id"])
    assert sorted(table["id"].to_pylist()) == list(range(2000))
    ids = [one.metadata["id"] for one in stored_in(vector_store).values()]
    assert sorted(ids) == list(range(2000))


def arrived(output: Path) -> list[Path]:
    return list((output / "_sparkinfer" / "vectors").glob("*/*"))


@pytest.fixture
def filled(model: Path, tmp_path: Path, vector_store: str) -> str:
    """A store that a run has filled."""
    source = write(tmp_path / "in.parquet", ["good film", "dull plot", "a story"])
    config = sparkinfer.ScoringConfig(
        model=str(model),
        task="embedding",
        input=str(source),
        input_col="text",
        output=str(tmp_path / "out"),
        engine="local",
        vectors={"store": vector_store, "key": "id", "metadata": ["text"]},
    )
    sparkinfer.run(config)
    return vector_store


def test_the_command_searches(filled: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", filled, "dull plot", "-k", "2", "--model", str(model)]
    assert main([*command, "--set", "task.prompt=''", "--dtype", "float32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split("  ")[-2:] == ["1", "text='dull plot'"]
    assert abs(float(lines[0].split()[0])) < 1e-5
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2
    assert set(found[0]) == {"id", "distance", "metadata"}


def test_another_model_is_refused(filled: str, model: Path, tmp_path: Path) -> None:
    other = add_sentence_files(
        make_encoder(tmp_path / "other", seed=1), pooling("mean"), NORMALIZE, whole=PROMPTS
    )
    with pytest.raises(OutputError, match="were made otherwise.*model_fingerprint was"):
        sparkinfer.search(filled, "good", model=str(other))
    cut = {"name": "embedding", "truncate_dim": 8}
    with pytest.raises(OutputError, match="task.resolved.truncate_dim was None, is 8"):
        sparkinfer.search(filled, "good", model=str(model), task=cut)


def test_what_cannot_be_searched_is_told(
    filled: str, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = {
        ("search", filled + "x", "good", "--model", str(model)): "there is no such collection or",
        ("search", filled, "good"): "option 'model' is required",
        ("search", filled, "good", "--model", str(model), "-k", "0"): "k=0: expected a number",
        ("search", "none", "good", "--model", str(model)): "vectors.store='none': expected chroma:",
        ("search", f"chroma:{tmp_path}/no#abc", "good", "--model", str(model)): "no such coll",
    }
    for command, message in said.items():
        assert main(list(command)) == 2, command
        assert message in capsys.readouterr().err


def test_doctor_looks_at_the_store(
    filled: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["doctor", "--engine", "local", "--model", str(model), "--task", "embedding"]
    given += ["--dtype", "float32", "--acceleration", "none"]
    main([*given, "--vector-store", filled, "--output", str(tmp_path / "out")])
    assert "holds 3 vectors of" in capsys.readouterr().out
    main([*given, "--vector-store", filled, "--output", str(tmp_path / "new")])
    assert "ERROR    vectors     vector store" in capsys.readouterr().out
    main([*given, "--vector-store", filled + "new"])
    assert "can be created" in capsys.readouterr().out
    main([*given, "--vector-store", "postgresql://x:secret-pw@127.0.0.1:1/db#t"])
    said = capsys.readouterr().out
    assert "'postgresql://127.0.0.1:1/db#t' cannot be reached" in said
    assert "secret-pw" not in said


def test_a_server_that_is_away_is_wrong_use_and_told_in_a_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.parquet", ["good"])
    command = [
        *("score", "--engine", "local", "--task", "embedding", "--model", str(model)),
        *("--input", str(source), "--input-col", "text", "--output", str(tmp_path / "out")),
        *("--vector-store", "postgresql://me:my-secret-pw@127.0.0.1:1/db#docs"),
    ]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "sparkinfer: error: vector store 'postgresql://127.0.0.1:1/db#docs' cannot be" in said
    assert "my-secret-pw" not in said
    assert not (tmp_path / "out").exists()


def test_a_server_that_ends_in_the_middle_stops_the_run_and_is_gone_on_with(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparkinfer.sinks.vectors import delivery, pgvector
    from tests.postgres_server import PostgresServer

    table = pa.table({"id": range(90), "text": sentences(90)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=30)
    monkeypatch.setattr(delivery.time, "sleep", lambda seconds: None)
    write_rows, calls = pgvector.PgVectorStore.write, []
    with PostgresServer() as server:
        config = sparkinfer.ScoringConfig(
            model=str(model),
            task="embedding",
            input=str(tmp_path / "in.parquet"),
            input_col="text",
            output=str(tmp_path / "out"),
            engine="local",
            chunks={"target_rows": 30},
            vectors={"store": f"{server.address}#documents", "key": "id", "batch_rows": 20},
        )

        def stopping(*arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) == 4:
                server.stop()
            write_rows(*arguments)

        monkeypatch.setattr(pgvector.PgVectorStore, "write", stopping)
        with pytest.raises(sparkinfer.SparkInferError, match="does not answer .*to resume") as told:
            sparkinfer.run(config)
        assert server.address.split(":")[2].split("@")[0] not in str(told.value)
        server.start()
        assert sparkinfer.run(config).vectors == 90
        assert len(stored_in(str(config.vectors.store))) == 90
