from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import run_gate
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import NOT_FINITE, NULL_TEXT, Scorer
from sparkinfer.models.tasks import make_task
from sparkinfer.option_groups import BatchingConfig, TaskConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.test_scorer import as_rows
from tests.tiny_models import make_entailer, make_tagger, sentences

LABELS = ["good", "bad film", "not very funny", "red"]
TEXTS = ["", "good", *sentences(30), "very good film " * 40]


@pytest.fixture(scope="module")
def entailer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_entailer(tmp_path_factory.mktemp("models") / "entailer")


def options_for(**task_options: Any) -> ModelOptions:
    task_options = {"candidate_labels": LABELS, **task_options}
    return options_of("zero-shot-classification", task_options=task_options)


def load(folder: Path, options: ModelOptions, max_length: int | None = None) -> RunningModel:
    return load_way(Checkpoint(folder, options, "cpu", max_length), PLAIN)


def score(
    model: RunningModel, options: ModelOptions, texts: list[str | None], **batching: int
) -> list[dict[str, Any]]:
    options = replace(options, batching=BatchingConfig(**batching))
    scored = Scorer(model, options).process([as_rows(texts)])
    return [row for batch in scored for row in batch.to_pylist()]


def assert_as_the_pipeline(
    folder: Path, rows: list[dict[str, Any]], texts: list[str], labels: Any, **options: Any
) -> None:
    """Compares with the pipeline in float64, so that only the rounding of rows is left."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).double()
    pipe = pipeline(
        "zero-shot-classification",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        device="cpu",
    )
    for row, text in zip(rows, texts, strict=True):
        # The pipeline takes no empty text; one of spaces has the same tokens.
        expected = pipe(text or " ", candidate_labels=labels, **options)
        assert row["error"] is None
        assert row["labels"] == expected["labels"]
        assert row["scores"] == pytest.approx(expected["scores"], abs=2e-5)
        assert row["prediction"] == row["labels"][0]
        assert row["probability"] == row["scores"][0]


@pytest.mark.parametrize(
    ("labels", "task_options"),
    [
        (LABELS, {}),
        (LABELS, {"multi_label": True}),
        ("good, bad film,red", {"hypothesis_template": "it was {0} and {{not}} {0}"}),
        (["good"], {}),
    ],
)
def test_scores_are_those_of_the_pipeline(
    entailer: Path, labels: Any, task_options: dict[str, Any]
) -> None:
    options = options_for(candidate_labels=labels, **task_options)
    rows = score(load(entailer, options), options, list(TEXTS), max_batch_tokens=512)
    assert_as_the_pipeline(entailer, rows, TEXTS, labels, **task_options)
    assert [row["truncated"] for row in rows] == [False] * (len(TEXTS) - 1) + [True]


@pytest.mark.parametrize(
    "names",
    [
        ("ENTAILMENT", "neutral", "contradiction"),
        ("neutral", "entails", "contradiction"),
        ("LABEL_0", "LABEL_1"),
    ],
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_outputs_are_found_as_by_the_pipeline(
    tmp_path: Path, names: tuple[str, ...], multi_label: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_entailer(tmp_path / "model", labels=names)
    options = options_for(multi_label=multi_label)
    rows = score(load(folder, options), options, list(TEXTS[:6]))
    assert ("names no output that begins with 'entail'" in caplog.text) == ("LABEL_0" in names)
    assert_as_the_pipeline(folder, rows, TEXTS[:6], LABELS, multi_label=multi_label)


def test_rows_keep_their_place_and_only_the_text_is_cut(entailer: Path) -> None:
    options = options_for()
    model = load(entailer, options)
    long, texts = "film " * 90, ["good", None, "bad", "good"]
    rows = score(model, options, [*texts, long, "film " * 100])
    assert [row["error"] for row in rows] == [None, NULL_TEXT, None, None, None, None]
    assert rows[1]["labels"] is rows[1]["prediction"] is None
    assert rows[0] == rows[3] != rows[2]
    assert rows[4] == rows[5]
    assert (rows[4]["n_tokens"], rows[4]["truncated"]) == (4 * 64, True)
    ids = model.encode([[long]]).encoded.columns["input_ids"].reshape(4, 64)
    tokenizer = model.encoder.tokenizer
    for label, row in zip(LABELS, ids, strict=True):
        hypothesis = tokenizer.encode(f"This example is {label}.", add_special_tokens=False)
        assert row[-len(hypothesis) - 1 : -1].tolist() == hypothesis


def test_a_row_with_a_score_that_is_not_finite_has_the_error(
    entailer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for()
    model = load(entailer, options)
    forward, red = model.runtime.forward, model.encoder.tokenizer.convert_tokens_to_ids("red")
    blue = model.encoder.tokenizer.convert_tokens_to_ids("blue")

    def overflowing(tensors: Any, head: Any = None) -> Any:
        logits, ids = forward(tensors)["logits"], tensors["input_ids"]
        logits[(ids == red).any(dim=1) & (ids == blue).any(dim=1)] = float("inf")
        return {"logits": logits}

    monkeypatch.setattr(model.runtime, "forward", overflowing)
    rows = score(model, options, ["good", "blue film", "film"])
    assert [row["error"] for row in rows] == [None, NOT_FINITE, None]
    assert rows[1]["scores"] is rows[1]["prediction"] is None


def test_great_logits_have_finite_scores(entailer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for multi_label in (False, True):
        options = options_for(multi_label=multi_label)
        model = load(entailer, options)
        forward = model.runtime.forward
        monkeypatch.setattr(
            model.runtime, "forward", lambda t, f=forward: {"logits": f(t)["logits"] * 1000}
        )
        (row,) = score(model, options, ["good"])
        assert row["error"] is None
        assert 0 <= min(row["scores"]) <= max(row["scores"]) <= 1


def test_the_gate_tries_pairs(entailer: Path) -> None:
    options = replace(options_for(), dtype="float32", acceleration="none")
    _, verdict = run_gate(entailer, options, WorkerSlot("cpu"), RowsAhead(100))
    assert (verdict.labels, verdict.max_length) == (tuple(LABELS), 64)
    assert verdict.layout.shared == "any length"


@pytest.mark.parametrize(
    ("task_options", "reason"),
    [
        ({}, "takes labels; give them as --set task.candidate_labels="),
        ({"candidate_labels": " , "}, "takes labels"),
        ({"candidate_labels": ["a", "b", "a"]}, "'a' appears twice"),
        ({"candidate_labels": [1, 2]}, "candidate_labels=.*expected a list of strings"),
        ({"candidate_labels": "a", "hypothesis_template": "It is."}, "write {} where the label"),
        ({"candidate_labels": "a", "hypothesis_template": "{x}"}, "KeyError: 'x'; write {}"),
        ({"candidate_labels": "a", "hypothesis_template": "{"}, "ValueError: .*; write {}"),
        ({"candidate_labels": "a", "multi_label": "yes"}, "multi_label='yes': expected true or"),
    ],
)
def test_what_makes_no_hypotheses_is_refused(task_options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_task(TaskConfig("zero-shot-classification", task_options))


def test_a_hypothesis_that_leaves_no_room_for_a_text_is_refused(entailer: Path) -> None:
    options = options_for(hypothesis_template="a film was {} " + "very " * 60)
    with pytest.raises(
        ConfigError, match="takes 69 tokens, and the model at most 64 with the text"
    ):
        run_gate(entailer, options, WorkerSlot("cpu"))


def test_a_model_that_cannot_tell_is_refused(tmp_path: Path) -> None:
    single = make_entailer(tmp_path / "single", labels=("entailment",))
    with pytest.raises(ModelLoadError, match="has one output"):
        run_gate(single, options_for(multi_label=True), WorkerSlot("cpu"))
    with pytest.raises(
        ModelLoadError,
        match="is a BertForTokenClassification .*ends with ForSequenceClassification",
    ):
        run_gate(make_tagger(tmp_path / "tagger"), options_for(), WorkerSlot("cpu"))
