"""Texts to token ids, cut to the model's limit, and token ids to padded tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.exceptions import ConfigError, ModelLoadError

_NO_LIMIT = 10**9
"""Tokenizers without a limit of their own report 1e30 (`VERY_LARGE_INTEGER` of transformers)."""

SLICE_CHARACTERS = 2**20
"""Texts tokenised in one call: what a tokenizer cuts off it keeps until the call is over, at many
times the size of the text."""

_POSITION_OFFSET_MODELS = frozenset({"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"})
"""Their positions start after the padding index: 514 positions hold 512 tokens."""


@dataclass
class Encoded:
    """Token ids of some texts, in the order of the texts.

    Attributes:
        columns: for each model input (`input_ids`, ...) one list of ints per text.
        n_tokens: tokens of each text after truncation, int64 (texts,).
        truncated: whether tokens were cut off, bool (texts,).
        errors: reason by index for texts that could not be tokenised; their ids are empty.
    """

    columns: dict[str, list[list[int]]]
    n_tokens: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    errors: dict[int, str] = field(default_factory=dict)


class Encoder:
    """A tokenizer with a length limit: what turns texts into model inputs.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens at which texts are cut, special tokens included.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._pad_values = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
            "attention_mask": 0,
        }
        unknown = set(tokenizer.model_input_names) - set(self._pad_values)
        if unknown:
            raise ModelLoadError(
                f"the tokenizer makes {sorted(unknown)}, expected only "
                f"{sorted(self._pad_values)}: models with other inputs than text are not supported"
            )

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Returns the token ids of texts; a text that the tokenizer refuses gets an error."""
        return _joined([self._encode_or_refuse(part) for part in _slices(texts)])

    def collate(self, encoded: Encoded, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Returns the rows as tensors padded to the longest: int64 (len(rows), longest)."""
        import torch

        lengths = encoded.n_tokens[rows]
        width = int(lengths.max())
        positions = np.arange(width)
        if self.tokenizer.padding_side == "left":
            filled = positions >= width - lengths[:, None]
        else:
            filled = positions < lengths[:, None]
        tensors = {}
        for name, values in encoded.columns.items():
            padded = np.full(filled.shape, self._pad_values[name] or 0, dtype=np.int64)
            flat = chain.from_iterable(values[row] for row in rows)
            padded[filled] = np.fromiter(flat, dtype=np.int64, count=int(lengths.sum()))
            tensors[name] = torch.from_numpy(padded)
        return tensors

    def _encode(self, texts: Sequence[str]) -> Encoded:
        batch = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, verbose=False
        )
        columns = {name: batch[name] for name in self.tokenizer.model_input_names if name in batch}
        n_tokens = np.array([len(ids) for ids in columns["input_ids"]], dtype=np.int64)
        errors = {
            int(row): "the tokenizer made no tokens of this text"
            for row in np.flatnonzero(n_tokens == 0)
        }
        return Encoded(columns, n_tokens, self._truncated(batch, texts, n_tokens), errors)

    def _truncated(
        self, batch: Any, texts: Sequence[str], n_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        cut = np.zeros(len(texts), dtype=np.bool_)
        for row in np.flatnonzero(n_tokens >= self.max_length):
            if batch.encodings:
                cut[row] = bool(batch.encodings[row].overflowing)
            else:  # tokenizers written in Python do not keep what they cut off
                whole = self.tokenizer(texts[row], truncation=False, verbose=False)
                cut[row] = len(whole["input_ids"]) > self.max_length
        return cut

    def _encode_or_refuse(self, texts: Sequence[str]) -> Encoded:
        try:
            return self._encode(texts)
        except Exception as error:  # whatever a tokenizer raises, it is about one of the texts
            if len(texts) > 1:
                return _joined([self._encode_or_refuse([text]) for text in texts])
            reason = f"tokenizer: {type(error).__name__}: {error}"
            return Encoded({}, np.zeros(1, np.int64), np.zeros(1, np.bool_), {0: reason})


def _slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields the texts in parts of about `SLICE_CHARACTERS`."""
    start = held = 0
    for row, text in enumerate(texts):
        if held and held + len(text) > SLICE_CHARACTERS:
            yield texts[start:row]
            start, held = row, 0
        held += len(text)
    if start < len(texts):
        yield texts[start:]


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """Returns what was encoded in parts as one."""
    names = {name for part in parts for name in part.columns}
    columns: dict[str, list[list[int]]] = {name: [] for name in names}
    errors: dict[int, str] = {}
    rows = 0
    for part in parts:
        for name in names:
            columns[name] += part.columns.get(name, [[]] * len(part.n_tokens))
        errors.update({rows + row: reason for row, reason in part.errors.items()})
        rows += len(part.n_tokens)
    return Encoded(
        columns,
        np.concatenate([np.zeros(0, np.int64), *(part.n_tokens for part in parts)]),
        np.concatenate([np.zeros(0, np.bool_), *(part.truncated for part in parts)]),
        errors,
    )


def length_limit(tokenizer: Any, model_config: Any, max_length: int | None) -> int:
    """Returns the tokens at which texts are cut: the model's limit, or less if asked for.

    Raises:
        ConfigError: `max_length` is more than the model can take.
    """
    limits = [getattr(tokenizer, "model_max_length", None) or _NO_LIMIT]
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions:
        offset = 0
        if getattr(model_config, "model_type", "") in _POSITION_OFFSET_MODELS:
            offset = (model_config.pad_token_id or 0) + 1
        limits.append(positions - offset)
    limit = int(min(*limits, _NO_LIMIT))
    if max_length is None:
        return limit
    if max_length > limit:
        raise ConfigError(
            f"max_length={max_length}: this model takes at most {limit} tokens; lower it or leave "
            "it out"
        )
    return max_length


def pads_batches(tokenizer: Any, model_config: Mapping[str, Any] | Any) -> bool:
    """Returns whether rows of different length can share a batch with this model."""
    return (
        tokenizer.pad_token_id is not None
        and getattr(model_config, "pad_token_id", None) is not None
    )
