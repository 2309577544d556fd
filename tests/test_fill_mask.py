"""Masked tokens, as the pipeline of that name fills them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import run_gate
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import load_way
from sparkinfer.models.scorer import NOT_FINITE, Scorer
from sparkinfer.option_groups import BatchingConfig, GateConfig
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.tiny_models import make_bert, sentences


def make_masked(folder: Path, **tokenizer: Any) -> Path:
    """Returns a folder with a random masked language model; see `make_bert`."""
    return make_bert(folder, "MaskedLM", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_masked(tmp_path_factory.mktemp("models") / "masked")


def masked_texts(count: int) -> list[str]:
    """Returns texts with one mask each, in different places, a few with two or three."""
    texts = []
    for number, text in enumerate(sentences(count)):
        words = text.split()
        for place in {number % len(words), *([0, len(words) // 2] if number % 7 == 0 else [])}:
            words[place] = "[MASK]"
        texts.append(" ".join(words))
    return texts


def score(
    folder: Path, texts: list[str | None], options: ModelOptions, way: Acceleration = PLAIN
) -> list[dict[str, Any]]:
    scorer = Scorer(load_way(Checkpoint(folder, options, "cpu"), way), options)
    batch = pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], names=["text"])
    return [row for scored in scorer.process([batch]) for row in scored.to_pylist()]


def check_equal(found: list[list[dict[str, Any]]], expected: Any) -> None:
    """Asserts that predictions are the pipeline's, which has no list around those of one mask."""
    expected = [expected] if isinstance(expected[0], dict) else expected
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.pop("score") for one in ours] == pytest.approx(
            [one.pop("score") for one in theirs], abs=1e-5
        )
        assert ours == theirs


@pytest.mark.parametrize(
    "task_options",
    [
        {},
        {"top_k": 1},
        {"top_k": 34},
        {"targets": ["good", "bad"]},
        {"targets": ["good", "bad", "red", "blue", "good"], "top_k": 3},
    ],
)
def test_predictions_are_the_pipelines(masked: Path, task_options: dict[str, Any]) -> None:
    from transformers import pipeline

    texts = [*masked_texts(60), "[MASK]", "[MASK] [MASK]", "a [PAD] good [MASK] film"]
    rows = score(masked, list(texts), options_of("fill-mask", task_options=task_options))
    pipe = pipeline("fill-mask", model=str(masked), device="cpu")
    assert sum(len(row["predictions"]) > 1 for row in rows) > 5
    for text, row in zip(texts, rows, strict=True):
        assert (row["error"], row["truncated"]) == (None, False)
        check_equal(row["predictions"], pipe(text, **task_options))


def test_a_text_without_a_mask_is_an_error_of_its_row(masked: Path) -> None:
    texts = [
        "a good film",
        "[MASK] film",
        "word " * 100 + "[MASK]",
        "[MASK] " + "word " * 100,
        "",
        None,
    ]
    rows = score(masked, list(texts), options_of("fill-mask"))
    assert [row["error"] for row in rows] == [
        "fill-mask: the text has no [MASK]",
        None,
        "fill-mask: the text has no [MASK] in what is left of it after truncation",
        None,
        "fill-mask: the text has no [MASK]",
        "text is null",
    ]
    assert [row["predictions"] is None for row in rows] == [
        row["error"] is not None for row in rows
    ]
    assert [row["truncated"] for row in rows] == [False, False, True, True, False, None]


def test_an_output_that_is_not_finite_is_an_error_of_its_row(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_masked(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.position_embeddings.weight"][5] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    texts: list[str | None] = ["a [MASK]", "a red green blue [MASK]", "[MASK]"]
    options = options_of("fill-mask", batching=BatchingConfig(max_batch_rows=1))
    rows = score(folder, texts, options)
    assert [row["error"] for row in rows] == [None, NOT_FINITE, None]
    assert [row["predictions"] is None for row in rows] == [False, True, False]


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_the_gate_finds_padding_and_limit(tmp_path: Path, padding_side: str) -> None:
    folder = make_masked(tmp_path / "model", padding_side=padding_side, model_max_length=10**6)
    _, verdict = run_gate(folder, options_of("fill-mask", acceleration="none"), WorkerSlot("cpu"))
    assert (verdict.max_length, verdict.unpadded, verdict.labels) == (64, "", ())


def test_the_gate_compares_probabilities_of_masked_tokens(masked: Path) -> None:
    options = options_of(
        "fill-mask", acceleration="none", dtype="bfloat16", gate=GateConfig(tolerance=1e-5)
    )
    _, verdict = run_gate(masked, options, WorkerSlot("cpu"))
    assert str(verdict.accepted) == "none in float32"
    assert "differs from float32 by" in verdict.rejected[0][1]
    options = options_of(
        "fill-mask", acceleration="none", dtype="bfloat16", gate=GateConfig(tolerance=0.3)
    )
    _, verdict = run_gate(masked, options, WorkerSlot("cpu"))
    assert str(verdict.accepted) == "none in bfloat16"
    assert 0 < verdict.max_difference < 0.3


@pytest.mark.parametrize(
    ("task_options", "message"),
    [
        ({"top_k": 0}, "task.top_k=0: expected an integer of at least 1"),
        ({"top_k": 40}, "task.top_k=40: the model has 39 tokens; ask for fewer"),
        ({"targets": []}, r"task.targets=\[\]: expected at least one word"),
        (
            {"targets": ["good", "goodfilm"]},
            r"task.targets with 'goodfilm': .* but this is \['\[UNK\]'\]",
        ),
        ({"targets": ["good film"]}, r"task.targets with 'good film': .* \['good', 'film'\]"),
        ({"target": ["good"]}, "unknown option 'task.target'; did you mean 'task.targets'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    masked: Path, task_options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = Checkpoint(masked, options_of("fill-mask", task_options=task_options), "cpu").task


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = make_masked(tmp_path / "model", mask_token=None)
    with pytest.raises(ModelLoadError, match="has no mask token"):
        _ = Checkpoint(folder, options_of("fill-mask"), "cpu").task


def test_a_classifier_has_no_head_for_it(classifier: Path) -> None:
    options = options_of("fill-mask")
    with pytest.raises(ModelLoadError, match="has no weights for .* trained for 'fill-mask'"):
        load_way(Checkpoint(classifier, options, "cpu"), PLAIN)
