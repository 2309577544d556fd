"""Entities, labels of the user's and regressions under every engine."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import ConfigError, InputError, JobError
from sparkinfer.models.scorer import NULL_TEXT
from sparkinfer.models.tasks.entities import ENTITY
from tests.engines.conftest import Run
from tests.tiny_models import make_classifier, make_entailer, make_tagger, sentences

STRIDED = {"name": "ner", "aggregation_strategy": "simple", "stride": 4}
LABELLED = pa.list_(
    pa.struct([("entity", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tagger(tmp_path_factory.mktemp("models") / "tagger")


@pytest.fixture(scope="module")
def entailer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_entailer(tmp_path_factory.mktemp("models") / "entailer")


def write(path: Path, texts: list[Any], **columns: Any) -> Path:
    texts = [one.encode() if isinstance(one, str) else one for one in texts]
    column = pa.array(texts, pa.binary()).view(pa.string())  # some may not be UTF-8
    table = pa.table({"id": pa.array(range(len(texts)), pa.int64()), "text": column, **columns})
    pq.write_table(table, path, row_group_size=40)
    return path


@cache
def pipe_of(task: str, folder: Path) -> Any:
    """Returns the plain pipeline, its scores in float64."""
    from transformers import pipeline

    pipe = pipeline(task, model=str(folder), device="cpu")
    pipe.model.double()
    return pipe


def spans(entities: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (one.get("entity", one.get("entity_group")), one["start"], one["end"], one["word"])
        for one in entities
    ]


def difficult() -> list[Any]:
    long = "Übermut 京都 😀 the film " * 30
    return [
        *sentences(90),
        None,
        "",
        long,
        b"bad \xff byte",
        "Zoë 😀😀 good",
        "zoë 😀😀  good",
        long,
    ]


def test_entities_are_those_of_the_pipeline_in_every_row(
    run: Run, tagger: Path, tmp_path: Path
) -> None:
    texts = difficult()
    source = write(tmp_path / "in.parquet", texts)
    result, frame = run(source, model=str(tagger), task=STRIDED, chunks={"target_rows": 40})
    assert (result.rows, result.error_rows, result.statistics.rows) == (97, 2, 97)
    assert frame.schema.field("entities").type.equals(pa.list_(ENTITY))
    rows = frame.drop(["text"]).to_pylist()
    assert [row["id"] for row in rows] == list(range(97))
    assert (rows[90]["entities"], rows[90]["error"]) == (None, NULL_TEXT)
    assert rows[93]["entities"] is None
    assert "not valid UTF-8" in rows[93]["error"]
    assert rows[91]["entities"] == []
    assert rows[92]["entities"] == rows[96]["entities"]
    assert rows[92]["entities"][-1]["end"] > 500
    pipe = pipe_of("ner", tagger)
    for row, text in zip(rows, texts, strict=True):
        if row["error"] is None:
            expected = pipe(text, aggregation_strategy="simple", stride=4)
            assert spans(row["entities"]) == spans(expected)
            assert [one["score"] for one in row["entities"]] == pytest.approx(
                [float(one["score"]) for one in expected], abs=1e-5
            )


def test_entities_are_measured_from_lists_and_from_json(
    run: Run, tagger: Path, tmp_path: Path
) -> None:
    texts = sentences(90)
    pipe = pipe_of("ner", tagger)
    true = [
        [{"entity": one[0], "start": one[1], "end": one[2]} for one in spans(found)]
        for found in (pipe(text, aggregation_strategy="first") for text in texts)
    ]
    right = [*true[:60], *([] for _ in true[60:])]  # the last rows are said to have none
    found = sum(map(len, true))
    precision = sum(map(len, right)) / found
    for name, labels in {
        "lists": pa.array(right, LABELLED),
        "json": pa.array([json.dumps(one) for one in right]),
    }.items():
        result, _ = run(
            write(tmp_path / f"{name}.parquet", list(texts), label=labels),
            model=str(tagger),
            task={"name": "ner", "aggregation_strategy": "first"},
            label_col="label",
            chunks={"target_rows": 40},
            output=str(tmp_path / name),
        )
        assert result.metrics == pytest.approx(
            {
                "labelled_rows": 90,
                "unknown_labels": 0,
                "precision": precision,
                "recall": 1,
                "f1": 2 * precision / (precision + 1),
            }
        )


def test_labels_of_the_users_in_every_row(run: Run, entailer: Path, tmp_path: Path) -> None:
    names = ["good", "bad film", "red"]
    texts: list[Any] = [*sentences(50), None, "", "film " * 90, b"\xff", "film " * 100]
    pipe = pipe_of("zero-shot-classification", entailer)
    expected = [
        None if text is None or isinstance(text, bytes) else pipe(text or " ", names)
        for text in texts
    ]
    labels = [one and one["labels"][0].upper() for one in expected]
    source = write(tmp_path / "in.parquet", texts, label=pa.array([*labels[:-1], "red"]))
    task = {"name": "zero-shot-classification", "candidate_labels": names}
    result, frame = run(
        source, model=str(entailer), task=task, label_col="label", chunks={"target_rows": 40}
    )
    assert (result.rows, result.error_rows) == (55, 2)
    for row, found in zip(frame.drop(["text"]).to_pylist(), expected, strict=True):
        if found is None:
            assert row["labels"] is row["scores"] is row["prediction"] is row["probability"] is None
            assert row["error"] is not None
            continue
        assert (row["labels"], row["prediction"]) == (found["labels"], found["labels"][0])
        assert row["scores"] == pytest.approx(found["scores"], abs=1e-5)
        assert row["probability"] == row["scores"][0]
    assert result.metrics["labelled_rows"] == 53
    assert result.metrics["accuracy"] == pytest.approx(
        (52 + (labels[-1] == "RED")) / 53  # as the last row's label was changed
    )
    assert frame.schema.field("scores").type.equals(pa.list_(pa.float32()))


def test_a_regression_is_measured(run: Run, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", labels=("stars",), problem_type="regression")
    texts = sentences(90)
    numbers = pa.array([i / 10 for i in range(90)])
    source = write(tmp_path / "in.parquet", list(texts), label=numbers)
    result, frame = run(source, model=str(folder), label_col="label", chunks={"target_rows": 40})
    errors = [abs(row["probabilities"][0] - row["label"]) for row in frame.to_pylist()]
    assert result.metrics["mae"] == pytest.approx(sum(errors) / 90)
    assert result.metrics["rmse"] == pytest.approx((sum(e * e for e in errors) / 90) ** 0.5)
    assert -1 <= result.metrics["pearson"] <= 1
    assert set(result.metrics) == {"labelled_rows", "unknown_labels", "mae", "rmse", "pearson"}


@pytest.mark.parametrize("engine", ["local"])
def test_a_resumed_run_counts_every_row_once(
    run: Run, tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparkinfer.engines import this_process

    texts = sentences(160)
    labels = pa.array([json.dumps([])] * 160)
    source = write(tmp_path / "in.parquet", list(texts), label=labels)
    options = {
        "model": str(tagger),
        "task": {"name": "ner", "aggregation_strategy": "simple"},
        "label_col": "label",
        "chunks": {"target_rows": 40},
    }
    whole, _ = run(source, output=str(tmp_path / "whole"), **options)
    score_chunk, done = this_process._score_chunk, []

    def broken(*arguments: Any) -> Any:
        done.append(1)
        if len(done) == 3:
            raise JobError("broken off")
        return score_chunk(*arguments)

    monkeypatch.setattr(this_process, "_score_chunk", broken)
    with pytest.raises(JobError, match="broken off"):
        run(source, **options)
    monkeypatch.undo()
    result, frame = run(source, **options)
    assert frame["id"].to_pylist() == list(range(160))
    assert result.rows_before in (40, 80)
    assert result.metrics == whole.metrics
    assert result.metrics["precision"] == 0


@pytest.mark.parametrize("engine", ["local"])
@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"label_col": "id"}, InputError, "label_col='id' has type int64, expected a list of str"),
        ({"task": {"name": "ner", "stride": 1}}, ConfigError, "task.stride=1 with task.aggreg"),
        ({"task": "zero-shot-classification"}, ConfigError, "takes labels; give them as --set"),
        ({"text_pair_col": "text"}, ConfigError, "the task reads one text"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_scored(
    run: Run, tagger: Path, tmp_path: Path, options: dict[str, Any], error: Any, reason: str
) -> None:
    source = write(tmp_path / "in.parquet", ["good"])
    with pytest.raises(error, match=reason):
        run(source, **{"model": str(tagger), "task": "ner", **options})
    assert not (tmp_path / "out").exists()
