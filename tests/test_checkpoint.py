"""Loading what transformers loads, and what is said where it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models import checkpoint
from sparkinfer.models.checkpoint import Checkpoint, missing_packages
from sparkinfer.models.pipeline_calls import LoadedPipeline
from sparkinfer.option_groups import LoadingConfig
from tests.model_options import options_of
from tests.tiny_models import save_tokenizer


@pytest.fixture
def folder(classifier: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classifier, tmp_path / "model"))


def load(folder: Path) -> Checkpoint:
    return Checkpoint(folder, options_of(), "cpu")


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def name_own_code(folder: Path) -> None:
    own = {"AutoModelForSequenceClassification": "modeling_own.Own"}
    change(folder / "config.json", auto_map=own)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})


def test_own_code_that_is_not_trusted_is_left_out(folder: Path) -> None:
    name_own_code(folder)
    loaded = load(folder)
    assert type(loaded.module()).__name__ == "BertForSequenceClassification"
    assert loaded.tokenizer("good")["input_ids"][0] == 2


def test_weights_that_only_the_own_code_uses_are_refused(folder: Path) -> None:
    name_own_code(folder)
    weights = load_file(folder / "model.safetensors")
    more = {**weights, "gate.weight": torch.zeros(2)}
    save_file(more, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"gate\.weight.*otherwise.*trust_remote_code=true"):
        load(folder).module()


def test_own_code_without_which_nothing_loads_asks_for_trust(folder: Path) -> None:
    change(
        folder / "config.json",
        model_type="vit",
        auto_map={"AutoModelForSequenceClassification": "modeling_own.Own"},
    )
    with pytest.raises(ModelLoadError, match=r"code of its own.*loading\.trust_remote_code=true"):
        load(folder).module()


def test_what_is_no_weight_is_computed_in_float32_whatever_the_weights_are(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.GemmaConfig(vocab_size=64, **sizes, **heads)
    model = transformers.GemmaForSequenceClassification(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    wanted = dict(type(model).from_pretrained(tmp_path, torch_dtype=torch.float32).named_buffers())
    pipe = LoadedPipeline("text-classification", tmp_path, "cpu", LoadingConfig(), {})
    for found in (load(tmp_path).module(), pipe._pipe.model):
        for name, buffer in found.named_buffers():
            assert torch.equal(buffer, wanted[name]), name


@pytest.mark.parametrize(
    ("file", "content", "packages"),
    [
        ("spiece.model", b"\n\x0e\n\x05<unk>", ["sentencepiece", "protobuf"]),
        ("spm.model", b"\n\x0e\n\x05<unk>", ["sentencepiece", "protobuf"]),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", ["tiktoken"]),
        ("qwen.tiktoken", b"IQ== 0\nIg== 1\n", ["tiktoken"]),
        ("vocab.txt", b"[PAD]\n", []),
    ],
)
def test_the_packages_that_a_tokenizer_needs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes, packages: list[str]
) -> None:
    monkeypatch.setattr(checkpoint, "_is_installed", lambda package: False)
    (tmp_path / file).write_bytes(content)
    assert missing_packages(tmp_path) == packages
    (tmp_path / "tokenizer.json").write_text("{}")
    assert missing_packages(tmp_path) == []


def test_a_tokenizer_that_does_not_load_for_lack_of_a_package_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_is_installed", lambda package: package == "protobuf")
    (folder / "tokenizer.json").unlink()
    change(folder / "tokenizer_config.json", tokenizer_class="AlbertTokenizer")
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(ModelLoadError, match="run pip install sentencepiece on every node"):
        _ = load(folder).tokenizer


def test_installed_packages_are_told_from_others() -> None:
    assert checkpoint._is_installed("numpy")
    assert not checkpoint._is_installed("no_such_package")


@pytest.mark.parametrize(
    ("architectures", "advice"),
    [
        (["BertForSequenceClassification"], None),
        (["BertForTokenClassification"], "give --task token-classification"),
        (["GPT2LMHeadModel"], "give --task text-generation"),
        (["BertForMultipleChoice"], "name the task that the model was trained for"),
        (["BertModel"], None),
        (["Own", "BertForSequenceClassification"], None),
        ([], None),
        (None, None),
    ],
)
def test_weights_of_another_head_are_refused_though_they_fit(
    folder: Path, architectures: list[str] | None, advice: str | None
) -> None:
    change(folder / "config.json", architectures=architectures)
    if advice is None:
        assert load(folder).task.labels == ("NEGATIVE", "POSITIVE")
        return
    expected = (
        "expected one that ends with ForSequenceClassification for task='text-classification'"
    )
    with pytest.raises(ModelLoadError, match=f"{expected}; {advice}"):
        _ = load(folder).task


def test_a_tokenizer_that_drops_merges_by_chance_does_not_drop_any(folder: Path) -> None:
    letters = "abcdefgh"
    merges = [(letters[:n], letters[n]) for n in range(1, len(letters))]
    known = [*"abcdefgh", *("".join(one) for one in merges), "[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    bpe = models.BPE({token: id for id, token in enumerate(known)}, merges, dropout=0.5)
    Tokenizer(bpe).save(str(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    drawn = transformers.AutoTokenizer.from_pretrained(folder)
    assert len({tuple(drawn(letters)["input_ids"]) for _ in range(50)}) > 1
    tokenizer = load(folder).tokenizer
    assert {tuple(tokenizer(letters)["input_ids"]) for _ in range(50)} == {(known.index(letters),)}
