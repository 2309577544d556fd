"""The task `embedding`: the vectors of `SentenceTransformer.encode` on the same folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.ahead import RowsAhead
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import Verdict, run_gate
from sparkinfer.models.layout import Layout
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.scorer import NOT_FINITE, Scorer
from sparkinfer.models.sentence_files import POOLING_MODES
from sparkinfer.workers.slot import WorkerSlot
from tests.model_options import options_of
from tests.sentence_models import (
    NORMALIZE,
    WIDTH,
    Module,
    add_sentence_files,
    dense,
    make_encoder,
    pooling,
    write_json,
)
from tests.tiny_models import save_tokenizer, sentences

TEXTS = ["", "good", *sentences(40), "The FILM was [MASK] très good", "word " * 100]
PROMPTS = {"prompts": {"query": "i loved the plot ", "passage": "film "}}
EXACT = 0.99999


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder alone."""
    return make_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture
def folder(encoder: Path, tmp_path: Path) -> Path:
    """A copy of it, to which files are added."""
    return Path(shutil.copytree(encoder, tmp_path / "model"))


def loaded(folder: Path, layout: Layout | None = None, **task_options: Any) -> RunningModel:
    options = options_of("embedding", task_options=task_options)
    return load_way(Checkpoint(folder, options, "cpu", layout=layout), PLAIN)


def rows_of(model: RunningModel, texts: Sequence[str | None]) -> list[dict[str, Any]]:
    column = pa.array(texts, pa.string())
    batches = [pa.RecordBatch.from_arrays([column], names=["text"])]
    scorer = Scorer(model, options_of("embedding"))
    return [row for batch in scorer.process(batches) for row in batch.to_pylist()]


def embedded(folder: Path, layout: Layout | None = None, **task_options: Any) -> Any:
    rows = rows_of(loaded(folder, layout, **task_options), TEXTS)
    assert [row["error"] for row in rows] == [None] * len(TEXTS)
    return np.array([row["embedding"] for row in rows], np.float32)


def reference(folder: Path, set_up: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Returns what the library gives, one text at a time."""
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu", **(set_up or {}))
    return model.encode(TEXTS, batch_size=1, **options)


def assert_same(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) >= EXACT * lengths).all()
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


MODELS: dict[str, list[Module]] = {
    **{mode: [pooling(mode)] for mode in POOLING_MODES},
    "normalised": [pooling("mean"), NORMALIZE],
    "joined": [pooling("mean", "max", "cls")],
    "dense": [pooling("mean"), dense(WIDTH, 16), NORMALIZE],
    "two dense": [
        pooling("cls", "mean"),
        dense(2 * WIDTH, 48, bias=False, activation_function="torch.nn.modules.linear.Identity"),
        dense(48, 48, use_residual=True),
        ("LayerNorm", {"dimension": 48}, {"norm.weight": (48,), "norm.bias": (48,)}),
    ],
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_vectors_are_the_librarys(folder: Path, kind: str, side: Any) -> None:
    add_sentence_files(folder, *MODELS[kind])
    # A BERT's positions count from the left, so that texts must be alone to be padded there.
    shared: Any = "any length" if side == "right" else "equal length"
    found = embedded(folder, Layout(shared, padding_side=side))
    assert_same(found, reference(folder))


def test_the_column_is_a_list_of_float32(folder: Path) -> None:
    add_sentence_files(folder, pooling("mean"))
    model = loaded(folder)
    assert model.task.schema == pa.schema([pa.field("embedding", pa.list_(pa.float32()))])


def test_a_text_gets_its_vector_without_its_batch(folder: Path) -> None:
    add_sentence_files(folder, pooling("mean"), NORMALIZE)
    model = loaded(folder)
    together = rows_of(model, TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        [alone] = rows_of(model, [text])
        assert row["embedding"] == pytest.approx(alone["embedding"], abs=1e-6)


def test_rows_say_what_they_say_for_every_task(folder: Path) -> None:
    add_sentence_files(folder, pooling("mean"))
    rows = rows_of(loaded(folder), ["good film", None, "word " * 100, ""])
    assert [row["n_tokens"] for row in rows] == [4, None, 64, 2]
    assert [row["truncated"] for row in rows] == [False, None, True, False]
    assert [row["embedding"] is None for row in rows] == [False, True, False, False]


# --- lengths, cases, prompts ---------------------------------------------------------------


@pytest.mark.parametrize(("of_tokenizer", "of_files"), [(64, 12), (16, 40), (64, None)])
def test_the_files_length_limit_counts_before_the_tokenizers(
    folder: Path, of_tokenizer: int, of_files: int | None
) -> None:
    save_tokenizer(folder, model_max_length=of_tokenizer)
    add_sentence_files(folder, pooling("mean"), encoder={"max_seq_length": of_files})
    assert_same(embedded(folder), reference(folder))
    [row] = rows_of(loaded(folder), ["word " * 100])
    assert row["n_tokens"] == (of_files or of_tokenizer)


def test_the_files_length_limit_is_no_more_than_the_models_positions(folder: Path) -> None:
    add_sentence_files(folder, pooling("mean"), encoder={"max_seq_length": 1000})
    [row] = rows_of(loaded(folder), ["word " * 100])
    assert (row["n_tokens"], row["truncated"]) == (64, True)


@pytest.mark.parametrize("lowers", [True, False])
def test_texts_are_put_in_lower_case_where_the_files_say_so(folder: Path, lowers: bool) -> None:
    import json

    made = json.loads((folder / "tokenizer.json").read_text())
    made["normalizer"] = None
    write_json(folder / "tokenizer.json", made)
    add_sentence_files(folder, pooling("mean"), encoder={"do_lower_case": lowers})
    found = embedded(folder)
    assert_same(found, reference(folder))
    small, capital, _ = (rows_of(loaded(folder), [t])[0] for t in ("film", "FILM", "[MASK]"))
    assert (small["embedding"] == capital["embedding"]) == lowers


ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "by its name": ({"prompt_name": "query"}, {"prompt_name": "query"}),
    "by its text": ({"prompt": "a boring plot "}, {"prompt": "a boring plot "}),
    "the empty one": ({"prompt": ""}, {"prompt": ""}),
    "one that the library has for all": ({"prompt_name": "document"}, {"prompt_name": "document"}),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("default", [None, "passage"])
@pytest.mark.parametrize("is_pooled", [True, False])
def test_the_prompt_stands_before_each_text(
    folder: Path, asked: str, default: str | None, is_pooled: bool
) -> None:
    whole = {**PROMPTS, "default_prompt_name": default}
    add_sentence_files(folder, pooling("mean", include_prompt=is_pooled), whole=whole)
    ours, theirs = ASKED[asked]
    assert_same(embedded(folder, **ours), reference(folder, **theirs))


@pytest.mark.parametrize("mode", ["cls", "mean", "mean_sqrt_len_tokens", "weightedmean"])
def test_a_prompt_that_is_not_pooled_is_left_out_of_each_mode(folder: Path, mode: str) -> None:
    add_sentence_files(folder, pooling(mode, include_prompt=False), whole=PROMPTS)
    found = embedded(folder, prompt_name="query")
    assert_same(found, reference(folder, prompt_name="query"))


def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(folder: Path) -> None:
    add_sentence_files(folder, pooling("mean"))
    asked = {"task_options": {"prompt": "i loved the plot "}, "dtype": "float32"}
    assert gated(folder, max_length=7, **asked).max_length == 7
    with pytest.raises(ConfigError, match=r"'i loved the plot ' takes 6 tokens of the 6 at which"):
        gated(folder, max_length=6, **asked)


def test_tokens_of_the_prompt_are_counted(folder: Path) -> None:
    add_sentence_files(folder, pooling("mean"), whole=PROMPTS)
    [row] = rows_of(loaded(folder, prompt_name="query"), ["good film"])
    assert row["n_tokens"] == 8


def test_a_text_without_a_token_that_counts_has_no_largest(folder: Path) -> None:
    save_tokenizer(folder, adds_specials=False, model_max_length=64)
    add_sentence_files(folder, pooling("max", include_prompt=False))
    rows = rows_of(loaded(folder, prompt="good "), ["film", ""])
    assert [row["error"] for row in rows] == [None, NOT_FINITE]


# --- options -------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 20, WIDTH])
@pytest.mark.parametrize("normalize", [None, True])
def test_vectors_are_cut_and_normalised_as_asked(
    folder: Path, cut: int, normalize: bool | None
) -> None:
    add_sentence_files(folder, pooling("mean"), NORMALIZE)
    found = embedded(folder, truncate_dim=cut, normalize=normalize)
    expected = reference(folder, {"truncate_dim": cut}, normalize_embeddings=bool(normalize))
    assert_same(found, expected)


def test_the_files_cut_is_taken_unless_another_is_asked_for(folder: Path) -> None:
    add_sentence_files(folder, pooling("mean"), whole={"truncate_dim": 12})
    assert_same(embedded(folder), reference(folder))
    assert embedded(folder, truncate_dim=20).shape[1] == 20


def test_without_files_the_mean_is_taken_as_the_library_does(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_same(embedded(folder), reference(folder))
    assert "no modules.json: the mean of a text's token vectors is taken" in caplog.text


@pytest.mark.parametrize("modes", ["cls", ["max", "mean"]])
def test_without_files_the_pooling_is_an_option(
    folder: Path, modes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = embedded(folder, pooling=modes, normalize=True)
    assert "modules.json" not in caplog.text
    add_sentence_files(folder, pooling(*([modes] if isinstance(modes, str) else modes)), NORMALIZE)
    assert_same(found, reference(folder))


def test_a_decoder_without_files_must_be_told_how_to_pool(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"BertForCausalLM"'))
    with pytest.raises(ModelLoadError, match=r"--set task\.pooling=lasttoken"):
        loaded(folder)
    loaded(folder, pooling="lasttoken")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another pooling": (
        {"pooling": "cls"},
        r"task\.pooling=\['cls'\]: this model's files say",
    ),
    "not normalised": ({"normalize": False}, r"task\.normalize=false: this model's files say that"),
    "too long": ({"truncate_dim": 17}, r"task\.truncate_dim=17: this model's vectors have 16 numb"),
    "unknown prompt": (
        {"prompt_name": "title"},
        r"task\.prompt_name='title': .*query, document",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_option_that_contradicts_the_files_is_refused(folder: Path, case: str) -> None:
    add_sentence_files(folder, pooling("mean"), dense(WIDTH, 16), NORMALIZE, whole=PROMPTS)
    options, expected = WRONG[case]
    with pytest.raises(ConfigError, match=expected):
        loaded(folder, **options)


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "two prompts": (
        {"prompt": "query: ", "prompt_name": "query"},
        r"task\.prompt='query: ' with task\.prompt_name='query': .* give one of them",
    ),
    "unknown pooling": (
        {"pooling": "median"},
        r"task\.pooling='median': expected one or a list",
    ),
    "prompt as mapping": ({"prompt": {"query": None}}, "expected a string; put it in quotes"),
    "no pooling": ({"pooling": []}, r"task\.pooling=\[\]: expected one or a list of cls, max"),
    "pooling as mapping": ({"pooling": {"mean": True}}, "expected one or a list of cls, max"),
    "no numbers": ({"truncate_dim": 0}, r"task\.truncate_dim=0: expected an integer of at least 1"),
    "unknown option": ({"pool": "mean"}, r"unknown option 'task\.pool'; did you mean 'task\.pooli"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_option_is_refused_without_a_model(case: str) -> None:
    options, expected = INVALID[case]
    with pytest.raises(ConfigError, match=expected):
        options_of("embedding", task_options=options)


def test_the_names_of_the_task_mean_the_same() -> None:
    names = ("embedding", "feature-extraction", "sentence-similarity")
    tasks = [options_of(name, task_options={"pooling": "cls"}).task for name in names]
    assert len(set(tasks)) == 1
    assert tasks[0].settings() == {
        "task.pooling": ["cls"],
        "task.normalize": None,
        "task.truncate_dim": None,
        "task.prompt": None,
        "task.prompt_name": None,
    }


# --- the gate ------------------------------------------------------------------------------


def gated(folder: Path, longest_text: int | None = None, **options: Any) -> Verdict:
    return run_gate(
        folder, options_of("embedding", **options), WorkerSlot("cpu"), RowsAhead(longest_text)
    )[1]


def test_the_gate_says_what_options_and_files_come_to(folder: Path) -> None:
    whole = {**PROMPTS, "default_prompt_name": "passage", "truncate_dim": 8}
    add_sentence_files(folder, pooling("cls", "max"), dense(2 * WIDTH, 16), NORMALIZE, whole=whole)
    assert gated(folder).task == {
        "pooling": ["cls", "max"],
        "layers": ["Dense", "Normalize"],
        "normalize": False,
        "truncate_dim": 8,
        "dimension": 8,
        "prompt": "film ",
    }


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_padding_changes_no_vector_in_the_gates_layout(folder: Path, mode: str) -> None:
    add_sentence_files(folder, pooling(mode))
    verdict = gated(folder, dtype="float32")
    assert verdict.layout == Layout("any length", "right", 0)
    assert verdict.max_length == 64


def test_a_model_that_padding_changes_gets_texts_of_equal_length(folder: Path) -> None:
    # Without a mask, padding is text to the model, and would be to the mean.
    save_tokenizer(folder, model_max_length=64, model_input_names=["input_ids", "token_type_ids"])
    add_sentence_files(folder, pooling("mean"))
    verdict = gated(folder, dtype="float32")
    assert verdict.layout.shared == "equal length"
    assert_same(embedded(folder, verdict.layout), reference(folder))


def test_the_gates_longest_text_has_the_prompt_and_the_models_length(folder: Path) -> None:
    add_sentence_files(folder, pooling("mean", include_prompt=False), whole=PROMPTS)
    options = {"task_options": {"prompt_name": "query"}, "dtype": "float32"}
    for longest in (None, 5):
        assert gated(folder, longest, **options).max_length == 64


def test_the_gate_compares_vectors_by_their_angle_and_length(folder: Path) -> None:
    task = loaded(folder).task

    def rows(*vectors: Any) -> pa.RecordBatch:
        column = pa.array(list(vectors), pa.list_(pa.float32()))
        return pa.RecordBatch.from_arrays([column], schema=task.schema)

    long = [30.0, 40.0]
    assert task.difference(rows(long, None), rows(long, None)) == 0
    assert task.difference(rows(long), rows([40.0, -30.0])) == pytest.approx(2**0.5)
    assert task.difference(rows(long), rows([33.0, 44.0])) == pytest.approx(0.1)
    turned = [50.0 * np.cos(0.01), 50.0 * np.sin(0.01)]
    assert task.difference(rows([50.0, 0.0]), rows(turned)) == pytest.approx(0.01, rel=1e-3)
    assert task.difference(rows([0.0, 0.0]), rows([0.0, 0.0])) == 0
    assert task.difference(rows([0.0, 0.0]), rows(long)) >= 1
    assert np.isnan(task.difference(rows(long, None), rows(long, long)))
    assert task.difference(rows(), rows()) == 0


def test_the_gate_runs_bfloat16_within_its_tolerance(folder: Path) -> None:
    make_encoder(folder, initializer_range=0.02)
    add_sentence_files(folder, pooling("mean"), dense(WIDTH, 16))
    verdict = gated(folder, dtype="bfloat16")
    assert verdict.accepted.dtype == "bfloat16"
    assert 0 < verdict.max_difference < verdict.tolerance == 0.05


# --- other models --------------------------------------------------------------------------


def test_an_encoder_that_lacks_the_pooler_is_complete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    add_sentence_files(folder, pooling("mean"))
    before = embedded(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(embedded(folder), before)


def test_a_layer_too_few_is_still_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    add_sentence_files(folder, pooling("mean"))
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layer.1" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="has no weights for .*layer.1"):
        loaded(folder)


def test_of_an_encoder_and_a_decoder_only_the_first_is_loaded(tmp_path: Path) -> None:
    import torch
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 39, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    T5EncoderModel(T5Config(**sizes, num_layers=2)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, model_max_length=64, model_input_names=["input_ids", "attention_mask"])
    add_sentence_files(tmp_path, pooling("mean"), dense(WIDTH, 8), NORMALIZE)
    assert_same(embedded(tmp_path), reference(tmp_path))


def test_a_decoder_is_pooled_at_its_last_token_on_either_side_of_padding(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 39, "hidden_size": WIDTH, "intermediate_size": 32}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)
    LlamaModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, model_max_length=64, model_input_names=["input_ids", "attention_mask"])
    add_sentence_files(tmp_path, pooling("lasttoken"), NORMALIZE)
    expected = reference(tmp_path)
    for side in ("left", "right"):
        assert_same(embedded(tmp_path, Layout("any length", padding_side=side)), expected)
