"""Tiny seeded models that tests make for themselves; they are random, but always the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

WORDS = [
    *("the", "a", "film", "was", "good", "bad", "great", "awful", "not", "very", "plot", "acting"),
    *("boring", "funny", "i", "loved", "hated", "it", "and", "but", "word", "red", "blue", "green"),
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
]


SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_tokenizer(
    folder: Path, *, adds_specials: bool = True, pieces: Sequence[str] = (), **settings: Any
) -> None:
    """Saves a tokenizer of one token per word, `[CLS]` and `[SEP]` around the text if wanted.

    Other words are made of the pieces, where these suffice.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *WORDS, *pieces])}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if pieces:
        inner.decoder = decoders.WordPiece()
    if adds_specials:
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in names}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **{**tokens, **settings})
    made.save_pretrained(folder)


def make_bert(
    folder: Path,
    kind: str,
    *,
    seed: int = 0,
    pieces: Sequence[str] = (),
    tokenizer: Mapping[str, Any] = MappingProxyType({}),
    **config: Any,
) -> Path:
    """Returns a folder with a random BERT of 64 positions, weights in float32, and a tokenizer.

    Args:
        folder: where to save it.
        kind: of its head, as in the name of transformers' class: `BertFor` and this.
        seed: of the weights.
        pieces: see `save_tokenizer`.
        tokenizer: further settings of it.
        **config: further settings of `BertConfig`.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(SPECIAL_TOKENS) + len(WORDS) + len(pieces),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
        "pad_token_id": 0,
        **config,
    }
    made = transformers.BertConfig(**settings)
    getattr(transformers, f"BertFor{kind}")(made).save_pretrained(folder)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    given = {"model_max_length": 64, "model_input_names": names, **tokenizer}
    save_tokenizer(folder, pieces=pieces, **given)
    return folder


def numbered(labels: Sequence[str]) -> dict[str, Any]:
    """Returns labels as a model's config has them."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def make_classifier(
    folder: Path, *, labels: tuple[str, ...] = ("NEGATIVE", "POSITIVE"), **config: Any
) -> Path:
    """Returns a folder with a random BERT classifier; see `make_bert`."""
    settings = {"intermediate_size": 128, **numbered(labels), **config}
    return make_bert(folder, "SequenceClassification", **settings)


LETTERS = [
    *"abcdefghijklmnopqrstuvwxyzäßé京都😀,.",
    *(f"##{x}" for x in "abcdefghijklmnopqrstuvwxyzß都😀"),
]
"""Pieces of words that are not in `WORDS`."""

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")


def make_tagger(folder: Path, *, labels: Sequence[str] = TAGS, **config: Any) -> Path:
    """Returns a folder with a random BERT that classifies tokens; see `make_bert`."""
    settings = {"initializer_range": 0.4, **numbered(labels), **config}
    return make_bert(folder, "TokenClassification", seed=1, pieces=LETTERS, **settings)


def make_entailer(
    folder: Path,
    *,
    labels: Sequence[str] = ("contradiction", "neutral", "entailment"),
    **config: Any,
) -> Path:
    """Returns a folder with a random BERT that tells whether one text follows from another."""
    return make_classifier(folder, labels=tuple(labels), **config)


def sentences(rows: int, *, seed: int = 0) -> list[str]:
    """Returns texts of skewed lengths: most are short, a few run to 40 words."""
    import random

    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS, k=min(40, 1 + int(draw.paretovariate(1.0)))))
        for _ in range(rows)
    ]
