from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
from transformers import AutoTokenizer

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models import tokens
from sparkinfer.models.encoded import Encoded, Inputs
from sparkinfer.models.tokens import NO_LIMIT, Asked, Encoder, claimed_limit
from tests.tiny_models import sentences


@pytest.fixture(scope="module")
def encoder(classifier: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(classifier), max_length=12)


def test_token_ids_are_those_of_the_tokenizer(encoder: Encoder) -> None:
    texts = sentences(50)
    encoded = encoder.encode(texts)
    expected = encoder.tokenizer(texts, truncation=True, max_length=12)
    assert encoded.columns["input_ids"].tolist() == list(chain(*expected["input_ids"]))
    assert encoded.n_tokens.tolist() == [len(ids) for ids in expected["input_ids"]]


@pytest.mark.parametrize(("words", "cut"), [(9, False), (10, False), (11, True), (500, True)])
def test_truncation_is_reported_only_where_tokens_were_cut(
    encoder: Encoder, words: int, cut: bool
) -> None:
    encoded = encoder.encode(["film " * words])
    assert encoded.n_tokens[0] == min(words + 2, 12)
    assert bool(encoded.truncated[0]) is cut


def test_truncation_is_reported_by_tokenizers_that_keep_no_overflow(encoder: Encoder) -> None:
    def without_encodings(*args: object, **kwargs: object) -> object:
        batch = encoder.tokenizer(*args, **kwargs)
        batch._encodings = None
        return batch

    slow = Encoder(encoder.tokenizer, max_length=12)
    slow.tokenizer = _Wrapped(encoder.tokenizer, without_encodings)
    encoded = slow.encode(["film " * 10, "film " * 11])
    assert encoded.truncated.tolist() == [False, True]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_equals_the_tokenizers_own(classifier: Path, side: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier, padding_side=side)
    texts = ["good", "a very good film", "", "it was not bad"]
    encoder = Encoder(tokenizer, max_length=12)
    rows = np.array([2, 0, 3, 1])
    tensors = encoder.collate(encoder.encode(texts), rows)
    expected = tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.tolist() == expected[name].tolist(), name


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_to_a_multiple_up_to_the_limit_and_one_text_is_not(
    encoder: Encoder, side: Literal["left", "right"]
) -> None:
    padding = encoder.padding(side, 0, 8)
    encoded = encoder.encode(["good", "a very good film", "film " * 9])
    lengths = encoded.n_tokens.tolist()
    assert lengths == [3, 6, 11]
    for rows, width in [([0, 1], 8), ([0, 2], 12), ([2], 11), ([0], 3)]:
        ids = padding.collate(encoded, np.array(rows))["input_ids"]
        mask = padding.collate(encoded, np.array(rows))["attention_mask"]
        assert ids.shape == mask.shape == (len(rows), width)
        assert mask.sum(dim=1).tolist() == [lengths[row] for row in rows]
        kept = encoder.collate(encoded, np.array([rows[0]]))["input_ids"][0]
        assert ids[0][mask[0] == 1].tolist() == kept.tolist()
        assert (ids[mask == 0] == 0).all()
    assert padding.padded_lengths(np.array([1, 8, 9, 12, 20])).tolist() == [8, 8, 12, 12, 20]


@pytest.fixture
def refusing(encoder: Encoder) -> Encoder:
    """An encoder whose tokenizer refuses the word `broken`, as some do lone surrogates."""

    def refuse(texts: list[str], *args: object, **kwargs: object) -> object:
        if any("broken" in text for text in texts):
            raise TypeError("not a text")
        return encoder.tokenizer(texts, *args, **kwargs)

    made = Encoder(encoder.tokenizer, max_length=12)
    made.tokenizer = _Wrapped(encoder.tokenizer, refuse)
    return made


def test_a_text_that_the_tokenizer_refuses_gets_an_error_and_spoils_no_other(
    refusing: Encoder,
) -> None:
    encoded = refusing.encode(["good", "broken", "bad"])
    assert encoded.errors == {1: "tokenizer: TypeError: not a text"}
    assert encoded.n_tokens.tolist() == [3, 0, 3]


def test_long_texts_are_encoded_in_slices_with_the_same_result(
    refusing: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*sentences(40), "broken", "film " * 30]
    whole = refusing.encode(texts)
    monkeypatch.setattr(tokens, "SLICE_CHARACTERS", 60)
    sliced = refusing.encode(texts)
    assert {name: ids.tolist() for name, ids in sliced.columns.items()} == {
        name: ids.tolist() for name, ids in whole.columns.items()
    }
    assert sliced.truncated.tolist() == whole.truncated.tolist()
    assert list(sliced.errors) == list(whole.errors) == [40]


def test_a_tokenizer_that_pads_if_nothing_is_said_pads_nothing(encoder: Encoder) -> None:
    def padding(*args: object, padding: object = True, **kwargs: object) -> object:
        return encoder.tokenizer(*args, padding=padding, **kwargs)

    plain = Encoder(encoder.tokenizer, max_length=12)
    plain.tokenizer = _Wrapped(encoder.tokenizer, padding)
    assert plain.encode(["good", "a very good film"]).n_tokens.tolist() == [3, 6]


def test_what_a_tokenizer_cuts_earlier_than_asked_is_truncated(encoder: Encoder) -> None:
    def shorter(*args: object, **kwargs: object) -> object:
        return encoder.tokenizer(*args, **{**kwargs, "max_length": 8})

    plain = Encoder(encoder.tokenizer, max_length=12)
    plain.tokenizer = _Wrapped(encoder.tokenizer, shorter)
    encoded = plain.encode(["film " * 6, "film " * 7])
    assert (encoded.n_tokens.tolist(), encoded.truncated.tolist()) == ([8, 8], [False, True])


def rows_per_call(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    encode = Encoder._encode

    def counted(self: Encoder, columns: Sequence[Sequence[str]], asked: Asked) -> Inputs:
        calls.append(len(columns[0]))
        return encode(self, columns, asked)

    monkeypatch.setattr(Encoder, "_encode", counted)
    return calls


def test_pairs_of_two_long_texts_are_encoded_one_by_one_with_the_same_result(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer keeps what is cut off as pairs, whose number is the product of their parts."""
    long = ["film " * 80] * 4
    whole = encoder.encode(long, long)
    calls = rows_per_call(monkeypatch)
    monkeypatch.setattr(tokens, "SLICE_CHARACTERS", 5000)
    pairs = encoder.encode(long, long)
    assert calls == [1, 1, 1, 1]
    assert pairs.columns["input_ids"].tolist() == whole.columns["input_ids"].tolist()
    assert pairs.truncated.all()
    encoder.encode(long, ["good"] * 4)
    encoder.encode(long)
    assert calls[4:] == [4, 4]


def test_a_text_without_any_token_gets_an_error(encoder: Encoder) -> None:
    def bare(*args: object, **kwargs: object) -> object:
        return encoder.tokenizer(*args, add_special_tokens=False, **kwargs)

    plain = Encoder(encoder.tokenizer, max_length=12)
    plain.tokenizer = _Wrapped(encoder.tokenizer, bare)
    encoded = plain.encode(["", "good"])
    assert encoded.errors == {0: "the tokenizer made no tokens of this text"}


def test_a_tokenizer_with_unknown_outputs_is_refused(classifier: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    tokenizer.model_input_names = ["input_ids", "entity_ids"]
    with pytest.raises(ModelLoadError, match="entity_ids"):
        Encoder(tokenizer, 12)


@pytest.mark.parametrize(
    ("tokenizer_limit", "config", "expected"),
    [
        (64, {"max_position_embeddings": 512}, 64),
        (10**30, {"max_position_embeddings": 512}, 512),
        (10**30, {"max_position_embeddings": -1}, NO_LIMIT),
        (10**30, {"max_position_embeddings": None}, NO_LIMIT),
        (1e30, {}, NO_LIMIT),
        (None, {"text_config": SimpleNamespace(max_position_embeddings=8)}, 8),
    ],
)
def test_the_claimed_limit_is_the_smaller_of_tokenizer_and_configuration(
    tokenizer_limit: float | None, config: dict[str, object], expected: int
) -> None:
    tokenizer = SimpleNamespace(model_max_length=tokenizer_limit)
    assert claimed_limit(tokenizer, SimpleNamespace(**config)) == expected


def test_tokens_beyond_a_vocabulary_are_found_with_their_sequences() -> None:
    ids = np.array([1, 9, 2, 3, 4, 11, 12], np.int32)
    encoded = Encoded({"input_ids": ids}, np.array([2, 0, 2, 3]), np.zeros(4, np.bool_))
    assert encoded.beyond(9) == {0: 9, 3: 12}
    assert encoded.beyond(13) == {}


class _Wrapped:
    """A tokenizer whose call is replaced and whose attributes are the original's."""

    def __init__(self, tokenizer: object, call: object) -> None:
        self._tokenizer = tokenizer
        self._call = call

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._call(*args, **kwargs)  # type: ignore[operator]

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)
