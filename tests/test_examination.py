"""What the gate finds out about a model in plain float32; see also `test_odd_models.py`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models import examination
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends.torch import PipelineRuntime
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import Verdict, run_gate
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.scorer import Scorer
from sparkinfer.workers.slot import WorkerSlot
from tests import model_options
from tests.odd_models import phi3_with_long_rope, save_model
from tests.tiny_models import SPECIAL_TOKENS, WORDS, save_tokenizer, sentences


def options_of(**options: Any) -> ModelOptions:
    settings = {"acceleration": "none", "dtype": "float32", **options}
    return model_options.options_of(**settings)


def verdict_of(folder: Path, longest_text: int | None = None, **options: Any) -> Verdict:
    return run_gate(folder, options_of(**options), WorkerSlot("cpu"), RowsAhead(longest_text))[1]


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Has every module changed by a function once it is loaded."""

    def spoil_with(change: Callable[[Any], None]) -> None:
        load = Checkpoint._load_module

        def load_changed(self: Checkpoint, dtype: str) -> Any:
            module = load(self, dtype)
            change(module)
            return module

        monkeypatch.setattr(Checkpoint, "_load_module", load_changed)

    return spoil_with


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of the batches that models have seen."""
    seen: list[tuple[int, int]] = []
    forward = PipelineRuntime.forward

    def noted(self: PipelineRuntime, tensors: dict[str, Any]) -> Any:
        seen.append(tuple(tensors["input_ids"].shape))
        return forward(self, tensors)

    monkeypatch.setattr(PipelineRuntime, "forward", noted)
    return seen


def raising_beyond(tokens: int, error: Exception) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        def check(module: Any, args: Any, kwargs: Any) -> None:
            if kwargs["input_ids"].shape[1] > tokens:
                raise error

        module.register_forward_pre_hook(check, with_kwargs=True)

    return change


def test_an_ordinary_model_is_padded_as_its_tokenizer_says(classifier: Path) -> None:
    verdict = verdict_of(classifier)
    assert (verdict.unpadded, verdict.layout.shared) == ("", "any length")
    assert (verdict.layout.padding_side, verdict.layout.pad_id) == ("right", 0)
    assert verdict.layout.resets == ()


def test_dropout_that_is_left_on_is_refused(
    classifier: Path, spoiled: Callable[[Callable[[Any], None]], None]
) -> None:
    spoiled(lambda module: module.train())
    with pytest.raises(ModelLoadError, match=r"gives a text another score each time.*random parts"):
        verdict_of(classifier)


def test_attention_with_random_hashes_is_refused(tmp_path: Path) -> None:
    sizes = {"attention_head_size": 16, "num_attention_heads": 2, "feed_forward_size": 64}
    chunks = {"lsh_attn_chunk_length": 8, "num_buckets": 4, "num_hashes": 1}
    axes = {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "hidden_size": 32}
    words = {"vocab_size": len(SPECIAL_TOKENS) + len(WORDS), "pad_token_id": 0, "eos_token_id": 3}
    save_model(
        tmp_path,
        "Reformer",
        **{**sizes, **chunks, **axes, **words},
        attn_layers=["lsh", "lsh"],
        max_position_embeddings=64,
        initializer_range=0.5,
        is_decoder=False,
    )
    save_tokenizer(tmp_path, model_input_names=["input_ids", "attention_mask"])
    with pytest.raises(ModelLoadError, match="gives a text another score each time"):
        verdict_of(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(classifier, tmp_path / "model"))
    save_model(folder, "GPT2", n_embd=8, n_head=1, n_layer=1, vocab_size=2)
    with pytest.raises(ModelLoadError, match="makes no token that the model knows"):
        verdict_of(folder)


class _MeanOfTheBatch(torch.nn.Module):
    def forward(self, values: Any) -> Any:
        return values - 0.5 * values.mean(dim=0, keepdim=True)


def test_rows_that_change_one_another_are_scored_one_by_one(
    classifier: Path, spoiled: Callable[[Callable[[Any], None]], None]
) -> None:
    spoiled(lambda module: setattr(module, "dropout", _MeanOfTheBatch()))
    verdict = verdict_of(classifier)
    assert verdict.layout.shared == "nothing"
    assert "nor do texts of equal length" in verdict.unpadded


class _Reservoir(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.zeros(32))

    def forward(self, values: Any) -> Any:
        self.held = 0.5 * self.held + values.mean(dim=0).detach()
        return values + self.held - values.mean(dim=0)


def test_a_models_memory_of_earlier_texts_is_put_back(
    classifier: Path, spoiled: Callable[[Callable[[Any], None]], None]
) -> None:
    spoiled(lambda module: setattr(module, "dropout", _Reservoir()))
    model, verdict = run_gate(classifier, options_of(), WorkerSlot("cpu"))
    assert verdict.layout.resets == ("dropout",)
    texts = sentences(30)
    scores = []
    for order in (texts, texts[::-1]):
        rows = pa.RecordBatch.from_arrays([pa.array(order)], names=["text"])
        (scored,) = Scorer(model, options_of()).process([rows])
        scores.append(dict(zip(order, scored["probability"].to_pylist(), strict=True)))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_state_that_changes_no_score_is_left_alone(
    classifier: Path, spoiled: Callable[[Callable[[Any], None]], None]
) -> None:
    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, values: Any) -> Any:
            self.calls += 1
            return values

    def count(module: Any) -> None:
        module.dropout = Counting()
        module.dropout.calls = 0

    spoiled(count)
    assert verdict_of(classifier).layout.resets == ()


@pytest.mark.parametrize(("longest_text", "longest"), [(None, 64), (1000, 64), (20, 23)])
def test_the_longest_probe_is_as_long_as_the_jobs_longest_text(
    tmp_path: Path, widths: list[tuple[int, int]], longest_text: int | None, longest: int
) -> None:
    words = {"vocab_size": len(SPECIAL_TOKENS) + len(WORDS), "max_position_embeddings": 64}
    save_model(
        tmp_path, "Bert", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, **words
    )
    save_tokenizer(tmp_path)
    verdict_of(tmp_path, longest_text)
    assert max(width for _, width in widths) == longest


def test_a_limit_that_only_a_trial_tells_is_found(
    classifier: Path,
    spoiled: Callable[[Callable[[Any], None]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoiled(raising_beyond(37, IndexError("index out of range in self")))
    with caplog.at_level(logging.WARNING, logger=examination.__name__):
        assert verdict_of(classifier).max_length == 37
    assert "truncated at 37 tokens" in caplog.text
    with pytest.raises(ConfigError, match="max_length=38: this model takes at most 37 tokens"):
        verdict_of(classifier, max_length=38)
    assert verdict_of(classifier, max_length=20).max_length == 20


def test_a_model_that_fails_on_long_texts_is_refused_with_the_length_to_give(
    classifier: Path, spoiled: Callable[[Callable[[Any], None]], None]
) -> None:
    spoiled(raising_beyond(37, RuntimeError("shapes do not fit")))
    with pytest.raises(ModelLoadError, match=r"of more than 37 tokens.*fit.*give max_length=37"):
        verdict_of(classifier)
    assert verdict_of(classifier, max_length=37).max_length == 37
    assert verdict_of(classifier, longest_text=30).max_length == 64


def test_a_model_that_fails_on_every_text_is_refused(
    classifier: Path, spoiled: Callable[[Callable[[Any], None]], None]
) -> None:
    spoiled(raising_beyond(0, RuntimeError("no such luck")))
    with pytest.raises(ModelLoadError, match="fails in plain float32.*no such luck"):
        verdict_of(classifier)


def test_a_trial_that_does_not_fit_in_memory_is_made_with_a_shorter_text(
    classifier: Path,
    spoiled: Callable[[Callable[[Any], None]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoiled(raising_beyond(62, MemoryError("no room")))
    with caplog.at_level(logging.WARNING, logger=examination.__name__):
        assert verdict_of(classifier, max_length=64).max_length == 64
    assert "no memory to try a text of 64 tokens" in caplog.text


def test_what_overflows_at_the_jobs_length_is_found_before_the_job(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = PipelineRuntime.forward

    def overflow(self: PipelineRuntime, tensors: dict[str, Any]) -> Any:
        output = forward(self, tensors)
        if self.pipe.model.dtype == torch.bfloat16:
            output["logits"][tensors["attention_mask"].sum(dim=1) > 63] = float("nan")
        return output

    monkeypatch.setattr(PipelineRuntime, "forward", overflow)
    verdict = verdict_of(classifier, dtype="bfloat16")
    assert verdict.accepted.dtype == "float32"
    assert verdict.rejected == (("none in bfloat16", "gives an output that is not finite"),)
    assert verdict_of(classifier, 40, dtype="bfloat16").accepted.dtype == "bfloat16"


@pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5, reason="older ones name them otherwise"
)
@pytest.mark.parametrize("longest_text", [10, 100])
def test_frequencies_for_long_texts_matter_where_there_are_long_texts(
    tmp_path: Path, longest_text: int
) -> None:
    phi3_with_long_rope(tmp_path)
    verdict = verdict_of(tmp_path, longest_text)
    assert bool(verdict.unpadded) == (longest_text == 100)


@pytest.mark.parametrize(("device", "multiple"), [("cpu", 1), ("cuda:0", 8)])
def test_on_a_gpu_layouts_with_padding_are_tried_with_lengths_that_are_multiples_of_eight(
    classifier: Path, device: str, multiple: int
) -> None:
    tried = list(examination._layouts(Checkpoint(classifier, options_of(), device), True))
    assert [(one.shared, one.padding_side, one.pad_to_multiple_of) for one in tried] == [
        ("any length", "right", multiple),
        ("any length", "left", multiple),
        ("equal length", "right", 1),
        ("nothing", "right", 1),
    ]
