"""Tiny seeded models with the files of sentence-transformers, written without that package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.tiny_models import SPECIAL_TOKENS, WORDS, save_tokenizer

WIDTH = 32
"""Numbers of a token's vector."""

Module = tuple[str, Mapping[str, Any], Mapping[str, Sequence[int]]]
"""A module's kind, its config.json, and the shapes of its weights."""


def make_encoder(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Returns a folder with a random BERT encoder of 64 positions and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "max_position_embeddings": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    known = len(SPECIAL_TOKENS) + len(WORDS)
    settings = {"vocab_size": known, "initializer_range": 0.5, **sizes, **config}
    BertModel(BertConfig(**settings)).save_pretrained(folder)
    save_tokenizer(
        folder,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    return folder


def pooling(*modes: str, **settings: Any) -> Module:
    """Returns a pooling module."""
    one_or_more = modes[0] if len(modes) == 1 else list(modes)
    return ("Pooling", {"embedding_dimension": WIDTH, "pooling_mode": one_or_more, **settings}, {})


def dense(inputs: int, outputs: int, **settings: Any) -> Module:
    """Returns a dense layer."""
    shapes: dict[str, Sequence[int]] = {"linear.weight": (outputs, inputs)}
    if settings.get("bias", True):
        shapes["linear.bias"] = (outputs,)
    if settings.get("use_residual") and inputs != outputs:
        shapes["residual.weight"] = (outputs, inputs)
    return ("Dense", {"in_features": inputs, "out_features": outputs, **settings}, shapes)


NORMALIZE: Module = ("Normalize", {}, {})


def add_sentence_files(
    folder: Path,
    *modules: Module,
    encoder: Mapping[str, Any] | None = None,
    whole: Mapping[str, Any] | None = None,
) -> Path:
    """Adds the files that make a model of an encoder and these modules.

    Args:
        folder: with the encoder.
        modules: the pooling, and the layers after it.
        encoder: content of sentence_bert_config.json; None: there is none.
        whole: content of config_sentence_transformers.json; None: there is none.
    """
    listed = [{"idx": 0, "name": "0", "path": "", "type": _type("Transformer")}]
    for number, (kind, settings, shapes) in enumerate(modules, start=1):
        path = f"{number}_{kind}"
        listed.append({"idx": number, "name": str(number), "path": path, "type": _type(kind)})
        (folder / path).mkdir()
        write_json(folder / path / "config.json", settings)
        if shapes:
            _write_weights(folder / path, shapes, seed=number)
    write_json(folder / "modules.json", listed)
    if encoder is not None:
        write_json(folder / "sentence_bert_config.json", encoder)
    if whole is not None:
        write_json(folder / "config_sentence_transformers.json", whole)
    return folder


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(value))


def _type(kind: str) -> str:
    return f"sentence_transformers.models.{kind}"


def _write_weights(folder: Path, shapes: Mapping[str, Sequence[int]], seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(*shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
