"""What the files of sentence-transformers say, and what is refused in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.files import matches
from sparkinfer.models.sentence_files import (
    POOLING_MODES,
    SENTENCE_FILES,
    Layer,
    Pooling,
    SentenceFiles,
    read_sentence_files,
)
from tests.sentence_models import NORMALIZE, add_sentence_files, dense, pooling, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_sentence_files(tmp_path, pooling("mean"), encoder={}, whole={})


def read(folder: Path) -> SentenceFiles:
    found = read_sentence_files(folder)
    assert found is not None
    return found


def test_a_folder_without_the_files_says_nothing(tmp_path: Path) -> None:
    assert read_sentence_files(tmp_path) is None


@pytest.mark.parametrize(
    "name",
    ["config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"],
)
def test_files_without_modules_json_are_an_incomplete_copy(folder: Path, name: str) -> None:
    (folder / "modules.json").unlink()
    if name.startswith("1_"):
        (folder / "config_sentence_transformers.json").unlink()
        (folder / "sentence_bert_config.json").unlink()
        assert read_sentence_files(folder) is None
        return
    with pytest.raises(ModelLoadError, match=r"modules\.json is missing; complete the copy"):
        read_sentence_files(folder)


def test_modules_are_read_in_order(tmp_path: Path) -> None:
    add_sentence_files(tmp_path, pooling("cls"), dense(32, 8), NORMALIZE, ("Dropout", {}, {}))
    found = read(tmp_path)
    assert found.pooling == Pooling(("cls",))
    assert found.layers == (
        Layer("Dense", "2_Dense", {"in_features": 32, "out_features": 8}),
        Layer("Normalize", "3_Normalize", {}),
    )
    assert (found.max_length, found.lowers_case, found.truncate_dim) == (None, False, None)
    assert (found.prompts, found.default_prompt) == ({"query": "", "document": ""}, None)


def test_modules_are_known_by_their_old_and_their_new_names(folder: Path) -> None:
    base, own = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer"
    kinds = [
        (f"{base}.transformer.Transformer", ""),
        (f"{own}.modules.pooling.Pooling", "1_Pooling"),
        (f"{base}.normalize.Normalize", "2_Normalize"),
    ]
    write_json(folder / "modules.json", [{"type": kind, "path": path} for kind, path in kinds])
    # Older versions wrote no folder for a module without settings.
    assert read(folder).layers == (Layer("Normalize", "2_Normalize", {}),)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_each_pooling_mode_is_read_in_its_old_and_its_new_form(folder: Path, mode: str) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": mode})
    assert read(folder).pooling.modes == (mode,)
    old = {setting: name == mode for name, setting in POOLING_MODES.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **old})
    assert read(folder).pooling.modes == (mode,)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode": ["max", "cls"]}, Pooling(("max", "cls"))),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            Pooling(("cls", "mean")),
        ),
        ({"pooling_mode_mean_tokens": False}, Pooling(("mean",))),
        ({}, Pooling(("mean",))),
        ({"include_prompt": False}, Pooling(("mean",), includes_prompt=False)),
    ],
)
def test_pooling_is_read(folder: Path, settings: dict[str, Any], expected: Pooling) -> None:
    write_json(folder / "1_Pooling" / "config.json", settings)
    assert read(folder).pooling == expected


def test_the_encoders_settings_are_read(folder: Path) -> None:
    settings = {
        **{"max_seq_length": 20, "do_lower_case": True, "unpad_inputs": None},
        "model_args": {"attn_implementation": "eager"},
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "last_hidden_state"}
        },
        **{"module_output_name": "token_embeddings", "transformer_task": "feature-extraction"},
    }
    write_json(folder / "sentence_bert_config.json", settings)
    assert (read(folder).max_length, read(folder).lowers_case) == (20, True)
    (folder / "sentence_bert_config.json").rename(folder / "sentence_xlm-roberta_config.json")
    assert read(folder).max_length == 20


def test_prompts_and_dimensions_are_read(folder: Path) -> None:
    settings = {"prompts": {"query": "q: "}, "default_prompt_name": "query", "truncate_dim": 8}
    write_json(folder / "config_sentence_transformers.json", settings)
    found = read(folder)
    assert found.prompts == {"query": "q: ", "document": ""}
    assert (found.default_prompt, found.truncate_dim) == ("query", 8)


def modules(*entries: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "modules.json", list(entries))


def module(kind: str, path: str = "", package: str = "sentence_transformers.models") -> Any:
    return {"idx": 0, "name": "0", "path": path, "type": f"{package}.{kind}"}


def settings(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / name, values)


POOLING_FILE = "1_Pooling/config.json"
ENCODER, WHOLE = "sentence_bert_config.json", "config_sentence_transformers.json"
T, P = module("Transformer"), module("Pooling", "1_Pooling")

REFUSED = {
    "unknown module": (modules(T, module("WordWeights", "1_WordWeights")), "WordWeights'"),
    "module of its own": (modules(module("Transformer", "", "custom_st"), P), "'custom_st.Tran"),
    "no pooling": (modules(T), "names Transformer, expected Transformer, Pooling, then layers"),
    "nothing": (modules(), "names nothing, expected"),
    "another order": (modules(T, module("Dense", "2_Dense"), P), "names Transformer, Dense, Pool"),
    "two poolings": (modules(T, P, P), "names Transformer, Pooling, Pooling, expected"),
    "no modules": (modules("Transformer"), "holds 'Transformer', expected a module's type"),
    "no list": (settings("modules.json", a=1), "holds no JSON array"),
    "transformer in a folder": (modules(module("Transformer", "0_Transformer"), P), "'0_Transf"),
    "folder outside": (modules(T, module("Pooling", "../1_Pooling")), "in the folder '../1_Pool"),
    "folder by another name": (modules(T, module("Pooling", "pooling")), "in the folder 'pooling'"),
    "pooling is missing": (
        lambda folder: (folder / POOLING_FILE).unlink(),
        r"names '1_Pooling', but 1_Pooling/config.json is missing",
    ),
    "pooling at the root": (modules(T, module("Pooling")), "names '', but"),
    "unknown pooling": (settings(POOLING_FILE, pooling_mode="median"), r"pooling_mode=\['median"),
    "pooling as mapping": (
        settings(POOLING_FILE, pooling_mode=[{}]),
        "pooling_mode=.*expected",
    ),
    "pooling as number": (settings(POOLING_FILE, pooling_mode=3), "pooling_mode=3, expected some"),
    "layer of tokens": (
        lambda folder: (
            modules(T, P, module("Normalize", "2_Normalize"))(folder),
            (folder / "2_Normalize").mkdir(),
            settings("2_Normalize/config.json", module_input_name="token_embeddings")(folder),
        ),
        "2_Normalize/config.json says module_input_name='token_embeddings', expected",
    ),
    "no JSON": (lambda folder: void((folder / POOLING_FILE).write_text("{")), "is not valid JSON"),
    "nested JSON": (
        lambda folder: void((folder / POOLING_FILE).write_text("[" * 100_000)),
        "1_Pooling/config.json is nested too deeply",
    ),
    "length as text": (settings(ENCODER, max_seq_length="256"), "max_seq_length='256', expected"),
    "length of none": (settings(ENCODER, max_seq_length=0), "max_seq_length=0, expected a number"),
    "another output": (settings(ENCODER, module_output_name="sentence_embedding"), "output_name="),
    "messages": (settings(ENCODER, modality_config={"message": {}}), "modality_config="),
    "other arguments": (settings(ENCODER, config_args={"num_hidden_layers": 1}), "config_args="),
    "arguments as a list": (settings(ENCODER, model_args=[{}]), "model_args="),
    "default as mapping": (
        settings(WHOLE, default_prompt_name={}),
        "default_prompt_name=",
    ),
    "another kind of model": (settings(WHOLE, model_type="CrossEncoder"), "'CrossEncoder', expec"),
    "prompts as a list": (settings(WHOLE, prompts=["query: "]), "prompts=.*expected a text by"),
    "prompt as a number": (settings(WHOLE, prompts={"query": 1}), "prompts=.*expected a text by"),
    "unknown default": (
        settings(WHOLE, default_prompt_name="passage"),
        "default_prompt_name='passage', expected one of query, document",
    ),
    "no dimensions": (settings(WHOLE, truncate_dim=True), "truncate_dim=True, expected a number"),
}


def void(_: object) -> None:
    return None


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_make_other_vectors_is_refused(folder: Path, case: str) -> None:
    change, expected = REFUSED[case]
    change(folder)
    with pytest.raises(ModelLoadError, match=expected) as caught:
        read_sentence_files(folder)
    assert caught.value.message.startswith(f"model {str(folder)!r}: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("modules.json", "1_Pooling/config.json", ENCODER, WHOLE)),
        *((f"2_Dense/{name}", True) for name in ("model.safetensors", "pytorch_model.bin")),
        *((name, False) for name in ("checkpoint-1/config.json", "onnx/model.onnx", "README.md")),
        ("model.safetensors", False),
    ],
)
def test_the_files_are_those_that_are_read(name: str, expected: bool) -> None:
    assert matches(name, SENTENCE_FILES) == expected
