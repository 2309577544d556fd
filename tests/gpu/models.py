"""Random models of real architectures, and texts for them; made here, the same each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = ("NEGATIVE", "NEUTRAL", "POSITIVE")


@dataclass(frozen=True)
class Shape:
    """The size of a model.

    Attributes:
        hidden: width of a token's vector.
        layers: number of layers.
        heads: of the attention.
        inner: width of the feed-forward part.
        vocabulary: tokens.
        length: maximum tokens of a sequence.
        settings: further settings of the configuration.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    inner: int = 512
    vocabulary: int = 2000
    length: int = 128
    settings: Mapping[str, Any] = field(default_factory=dict)


BASE = Shape(768, 12, 12, 3072, 30_000, 512)
"""Of BERT-base and DeBERTa-v3-base."""

BILLION = Shape(2048, 16, 32, 8192, 32_000, 512, {"num_key_value_heads": 8})
"""A causal model of about a billion parameters, the shape of Llama 3.2 1B."""


def _bert(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.length,
    }


def _roberta(shape: Shape) -> dict[str, Any]:
    # Positions count from the padding's id, 0 here, plus one.
    return {**_bert(shape), "max_position_embeddings": shape.length + 1, "type_vocab_size": 1}


def _deberta(shape: Shape) -> dict[str, Any]:
    return {
        **_bert(shape),
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    }


def _distilbert(shape: Shape) -> dict[str, Any]:
    return {
        "dim": shape.hidden,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
        "hidden_dim": shape.inner,
        "max_position_embeddings": shape.length,
    }


def _gpt2(shape: Shape) -> dict[str, Any]:
    return {
        "n_embd": shape.hidden,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_inner": shape.inner,
        "n_positions": shape.length,
    }


KINDS: dict[str, Callable[[Shape], dict[str, Any]]] = {
    "Bert": _bert,
    "Roberta": _roberta,
    "DebertaV2": _deberta,
    "DistilBert": _distilbert,
    "GPT2": _gpt2,
    "Llama": _bert,
}
"""By the name of transformers' classes, the settings of a shape."""


def make_model(
    folder: Path,
    kind: str,
    shape: Shape,
    change: Callable[[Any], None] = lambda module: None,
    device: str = "cpu",
    **settings: Any,
) -> Path:
    """Writes a random classifier and its tokenizer, and returns the folder.

    Args:
        folder: where to write it; nothing is done if it exists.
        kind: key of `KINDS`.
        shape: its size.
        change: changes the weights before they are written.
        device: where the weights are drawn; large ones take long on a CPU.
        settings: of the configuration, beside those of the shape.
    """
    if folder.exists():
        return folder
    import torch
    import transformers

    torch.manual_seed(0)
    wanted = {
        **KINDS[kind](shape),
        "vocab_size": shape.vocabulary,
        "pad_token_id": 0,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: index for index, name in enumerate(LABELS)},
        **shape.settings,
        **settings,
    }
    config = getattr(transformers, f"{kind}Config")(**wanted)
    with torch.device(device):
        module = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    change(module)
    module.float().save_pretrained(folder)
    _make_tokenizer(shape).save_pretrained(folder)
    return folder


def _make_tokenizer(shape: Shape) -> Any:
    """Returns a tokenizer that knows the words of `words`, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL, *words(shape)]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=shape.length,
        model_input_names=["input_ids", "attention_mask"],
    )


def words(shape: Shape) -> list[str]:
    """Returns the words that a model of this shape has a token for."""
    return [f"w{number}" for number in range(shape.vocabulary - len(SPECIAL))]


def review_lengths(count: int, longest: int) -> list[int]:
    """Returns lengths in words like those of reviews: about 25 tokens in the mean."""
    draw = random.Random(1)
    return [min(longest, max(1, round(draw.lognormvariate(3.05, 0.4)))) for _ in range(count)]


def heavy_lengths(count: int, longest: int) -> list[int]:
    """Returns lengths in words with a heavy tail: most are short, some as long as allowed."""
    draw = random.Random(2)
    return [min(longest, round(8 * draw.paretovariate(0.9))) for _ in range(count)]


LENGTHS = {"reviews": review_lengths, "heavy tail": heavy_lengths}


def texts_of(shape: Shape, lengths: list[int]) -> list[str]:
    """Returns texts of these numbers of words, all different."""
    known = words(shape)
    draw = random.Random(3)
    return [" ".join(draw.choices(known, k=length)) for length in lengths]
