"""The tokenizer in Rust called directly gives what it gives through transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from sparkinfer.models import tokens
from sparkinfer.models.encoded import Encoded
from sparkinfer.models.tokens import Encoder
from tests.tiny_models import WORDS

LIMIT = 9
TEXTS = [
    "",
    "good",
    "a very good film",
    "[SEP] naïve 京都 😀",
    "film " * 7,
    "film " * 8,
    "no " * 400,
]


def bert(tokenizer: Any) -> None:
    """Leaves it as it is."""


def cuts_left(tokenizer: Any) -> None:
    tokenizer.truncation_side = "left"


def pads_by_its_file(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_padding(length=20)


def ends_with_another_kind(tokenizer: Any) -> None:
    """As XLNet's does."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2",
        pair="$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )


def splits_special_tokens(tokenizer: Any) -> None:
    tokenizer.split_special_tokens = True


CHANGES = [bert, cuts_left, pads_by_its_file, ends_with_another_kind, splits_special_tokens]


def encoder_of(folder: Path, change: Callable[[Any], None] = bert) -> Encoder:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return Encoder(tokenizer, LIMIT)


def through_transformers(encoder: Encoder, columns: Sequence[Sequence[str]]) -> Encoded:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokens, "is_called_directly", lambda tokenizer: False)
        other = Encoder(encoder.tokenizer, LIMIT)
        other._how = encoder._how
        return other.encode(*columns)


def check(encoder: Encoder, *columns: Sequence[str]) -> None:
    found, expected = encoder.encode(*columns), through_transformers(encoder, columns)
    assert [way is not None for way in encoder._direct.values()] == [True] * len(encoder._direct)
    assert encoder._direct
    assert found.columns.keys() == expected.columns.keys()
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
        assert found.columns[name].dtype == values.dtype
    np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    assert found.errors == expected.errors


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("special", [True, False])
def test_texts_and_pairs_have_the_tokens_that_transformers_gives(
    classifier: Path, change: Callable[[Any], None], special: bool
) -> None:
    encoder = encoder_of(classifier, change)
    if not special:
        encoder = encoder.without_special_tokens()
    check(encoder, TEXTS)
    check(encoder, TEXTS, TEXTS[::-1])


@pytest.fixture(scope="module")
def plain(classifier: Path) -> Encoder:
    return encoder_of(classifier)


@settings(max_examples=60)
@given(st.lists(st.text() | st.lists(st.sampled_from(WORDS)).map(" ".join), min_size=1, max_size=8))
def test_any_text_has_the_tokens_that_transformers_gives(plain: Encoder, texts: list[str]) -> None:
    check(plain, texts)


def test_encoders_of_one_tokenizer_keep_their_own_limits(plain: Encoder) -> None:
    shorter = plain.cutting_at(4)
    for encoder, length in ((plain, 9), (shorter, 4), (plain, 9), (shorter, 4)):
        assert encoder.encode(["film " * 30]).n_tokens.tolist() == [length]


def direct_ways(tokenizer: Any) -> list[bool]:
    encoder = Encoder(tokenizer, LIMIT)
    encoder.encode(["good film"])
    return [way is not None for way in encoder._direct.values()]


def test_a_tokenizer_whose_class_has_its_own_way_of_encoding_is_called_as_it_is(
    classifier: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    own = type(tokenizer)

    class Shouting(own):  # type: ignore[misc, valid-type]
        def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(["bad film" for _ in text], *args, **kwargs)

    assert direct_ways(tokenizer) == [True]
    tokenizer.__class__ = Shouting
    assert direct_ways(tokenizer) == [False]
    found = Encoder(tokenizer, LIMIT).encode(["good"])
    assert found.columns["input_ids"].tolist() == [
        2,
        *tokenizer.backend_tokenizer.encode("bad film").ids[1:-1],
        3,
    ]


def test_a_tokenizer_for_which_both_ways_differ_is_called_as_it_is(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    real = tokenizer.backend_tokenizer
    monkeypatch.setattr(
        "sparkinfer.models.direct_encoding.DirectEncoding.encodings",
        lambda self, columns: real.encode_batch([f"{text} film" for text in columns[0]]),
    )
    assert direct_ways(tokenizer) == [False]
