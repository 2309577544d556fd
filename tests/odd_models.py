"""Tiny models whose scores depend on padding, on positions or on what was scored before.

Each is made in a folder; what a text gets there alone is the pipeline's answer with the model as
loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.tiny_models import SPECIAL_TOKENS, WORDS, save_tokenizer

VOCABULARY = len(SPECIAL_TOKENS) + len(WORDS)

WITH_TYPES = ["input_ids", "token_type_ids", "attention_mask"]
WITHOUT_TYPES = ["input_ids", "attention_mask"]

_LIKE_BERT = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.5},
    **{"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
}
_LIKE_GPT2 = {
    **{"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    **{"initializer_range": 0.5, "bos_token_id": 2, "eos_token_id": 3},
}
_LONG_ROPE = {
    **{"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16},
    **{"short_factor": [1.0] * 8, "long_factor": [4.0 + step for step in range(8)]},
}


def save_model(folder: Path, kind: str, **config: Any) -> None:
    """Saves a random classifier of three labels; `kind` is its name before `Config`."""
    import torch
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(num_labels=3, **config)
    classifier = getattr(transformers, f"{kind}ForSequenceClassification")(made)
    classifier.float().save_pretrained(folder)


def left_bert(folder: Path) -> None:
    save_model(folder, "Bert", **_LIKE_BERT)
    save_tokenizer(folder, padding_side="left", model_input_names=WITH_TYPES)


def left_gpt2(folder: Path) -> None:
    save_model(folder, "GPT2", **_LIKE_GPT2, pad_token_id=0)
    save_tokenizer(folder, adds_specials=False, padding_side="left")


def gpt2_without_padding(folder: Path) -> None:
    save_model(folder, "GPT2", **_LIKE_GPT2, pad_token_id=None)
    save_tokenizer(folder, adds_specials=False, pad_token=None, model_input_names=WITHOUT_TYPES)


def gpt2_with_another_pad(folder: Path) -> None:
    save_model(folder, "GPT2", **_LIKE_GPT2, pad_token_id=3)
    save_tokenizer(folder, adds_specials=False, model_input_names=WITHOUT_TYPES)


def llama_with_pad_minus_one(folder: Path) -> None:
    kept = {name: value for name, value in _LIKE_BERT.items() if name != "pad_token_id"}
    save_model(folder, "Llama", **kept, num_key_value_heads=2, pad_token_id=-1)
    save_tokenizer(folder, adds_specials=False, model_input_names=WITHOUT_TYPES)


def gpt2_with_pad_outside(folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    left_gpt2(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    config.pad_token_id = VOCABULARY
    config.save_pretrained(folder)


def fnet(folder: Path) -> None:
    save_model(folder, "FNet", **_LIKE_BERT)
    save_tokenizer(folder, model_input_names=["input_ids", "token_type_ids"])


def mpnet(folder: Path) -> None:
    save_model(folder, "MPNet", **_LIKE_BERT | {"pad_token_id": 1, "max_position_embeddings": 66})
    save_tokenizer(folder, pad_token="[UNK]", model_input_names=WITHOUT_TYPES)


def xlnet(folder: Path) -> None:
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.5}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    save_model(folder, "XLNet", vocab_size=VOCABULARY, **sizes, **ids)
    save_tokenizer(folder, padding_side="left", model_input_names=WITH_TYPES)


def phi3_with_long_rope(folder: Path) -> None:
    heads = {"num_key_value_heads": 2, "original_max_position_embeddings": 16}
    save_model(folder, "Phi3", **_LIKE_BERT, **heads, rope_parameters=_LONG_ROPE)
    save_tokenizer(folder, adds_specials=False, model_input_names=WITHOUT_TYPES)


def big_bird(folder: Path) -> None:
    """It attends sparsely to more than 28 tokens, until it has seen fewer."""
    save_model(folder, "BigBird", **_LIKE_BERT, block_size=4, num_random_blocks=1)
    save_tokenizer(folder, model_input_names=WITHOUT_TYPES)


ODD_MODELS: dict[str, tuple[Callable[[Path], None], int]] = {
    "an encoder padded on the left": (left_bert, 64),
    "a decoder padded on the left": (left_gpt2, 64),
    "no padding": (gpt2_without_padding, 64),
    "pad ids that disagree": (gpt2_with_another_pad, 64),
    "a pad id of -1": (llama_with_pad_minus_one, 64),
    "a pad id outside the vocabulary": (gpt2_with_pad_outside, 64),
    "no attention mask": (fnet, 64),
    "positions after the padding's": (mpnet, 64),
    "no limit": (xlnet, 1000),
    "frequencies for long texts": (phi3_with_long_rope, 64),
    "sparse attention": (big_bird, 64),
}
"""What makes each model and the tokens it takes, by what is odd about it."""


def alone(folder: Path, texts: Sequence[str], max_length: int) -> list[list[float]]:
    """Returns the pipeline's probabilities of each text by itself, with a model as loaded."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    module = AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipe = pipeline("text-classification", module, tokenizer=tokenizer, device="cpu")
    scores = []
    for text in texts:
        pipe.model = copy.deepcopy(module)
        (found,) = pipe([text], top_k=None, truncation=True, max_length=max_length)
        by_label = {item["label"]: item["score"] for item in found}
        scores.append([by_label[f"LABEL_{label}"] for label in range(3)])
    return scores
