"""Tiny seeded models that tests make for themselves; they are random, but always the same."""

from pathlib import Path
from typing import Any

WORDS = [
    *("the", "a", "film", "was", "good", "bad", "great", "awful", "not", "very", "plot", "acting"),
    *("boring", "funny", "i", "loved", "hated", "it", "and", "but", "word", "red", "blue", "green"),
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
]


def make_classifier(
    folder: Path, *, labels: tuple[str, ...] = ("NEGATIVE", "POSITIVE"), **config: Any
) -> Path:
    """Returns a folder with a random BERT classifier of 64 positions, weights in float32."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocab),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=64,
            initializer_range=0.5,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            pad_token_id=0,
            **config,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(rows: int, *, seed: int = 0) -> list[str]:
    """Returns texts of skewed lengths: most are short, a few run to 40 words."""
    import random

    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS, k=min(40, 1 + int(draw.paretovariate(1.0)))))
        for _ in range(rows)
    ]
