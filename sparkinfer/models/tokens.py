"""Turns texts into token ids, truncated to the model's limit, and token ids into padded tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.direct_encoding import DirectEncoding, flat, is_called_directly
from sparkinfer.models.encoded import Encoded, Inputs, joined_inputs

NO_LIMIT = 10**9
"""Means none: tokenizers without a limit report 1e30 (`VERY_LARGE_INTEGER` of transformers),
configurations without one -1."""

MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
"""What tokenizers make for models that read text."""

SLICE_CHARACTERS = 2**20
"""Maximum characters tokenised in one call: a tokenizer keeps what it cuts off until the call ends,
at many times the size of the text."""

PaddingSide = Literal["left", "right"]

Cut = Literal["longest_first", "only_first"]
"""Which of two texts loses what is too long: token by token the longer of them, or the first."""


def nothing_more(_: Any) -> Mapping[str, npt.NDArray[np.int32]]:
    """Returns no further columns."""
    return {}


@dataclass(frozen=True)
class Asked:
    """What a tokenizer is asked for.

    Attributes:
        options: of the call.
        columns: names of the columns that are kept per token.
        read: makes of what the tokenizer returned the columns that are no list of its own, each
            int32 (tokens,).
    """

    options: Mapping[str, Any]
    columns: tuple[str, ...]
    read: Callable[[Any], Mapping[str, npt.NDArray[np.int32]]] = nothing_more


class Encoder:
    """A tokenizer with a length limit: what turns texts into model inputs.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens at which texts are truncated, special tokens included.
        padding_side: where shorter sequences of a batch are filled; None: as the tokenizer does.
        pad_id: token with which they are filled; None: the tokenizer's own.
        cut_is_asked: whether the length limit was asked for, for tasks that would rather refuse a
            text than cut it.
        pad_to_multiple_of: of what the length of a batch of several sequences is a multiple, if
            the length limit is not in the way.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        padding_side: PaddingSide | None = None,
        pad_id: int | None = None,
        cut_is_asked: bool = False,
        pad_to_multiple_of: int = 1,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cut_is_asked = cut_is_asked
        self._multiple = pad_to_multiple_of
        self._how: dict[str, bool] = {}
        self._direct: dict[tuple[Any, ...], DirectEncoding | None] = {}
        self._padding_side = padding_side or tokenizer.padding_side
        self._pad_values = {
            "input_ids": tokenizer.pad_token_id if pad_id is None else pad_id,
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
            "attention_mask": 0,
        }
        unknown = set(tokenizer.model_input_names) - set(self._pad_values)
        if unknown:
            raise ModelLoadError(
                f"the tokenizer makes {sorted(unknown)}, expected only "
                f"{sorted(self._pad_values)}: models with inputs other than text are not supported"
            )

    def cutting_at(self, max_length: int) -> Encoder:
        """Returns the same with another length limit, which is asked for."""
        other = copy.copy(self)
        other.max_length, other.cut_is_asked, other._direct = max_length, True, {}
        return other

    def without_special_tokens(self) -> Encoder:
        """Returns the same for texts that hold their special tokens already."""
        other = copy.copy(self)
        other._how, other._direct = {"add_special_tokens": False}, {}
        return other

    def padding(self, side: PaddingSide, pad_id: int, pad_to_multiple_of: int = 1) -> Encoder:
        """Returns the same with shorter sequences filled otherwise."""
        how = (side, pad_id, self.cut_is_asked, pad_to_multiple_of)
        return Encoder(self.tokenizer, self.max_length, *how)

    def padded_lengths(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns how long sequences are in a batch of which they are the longest, int64.

        Args:
            lengths: of the sequences, int64.
        """
        if self._multiple == 1:
            return lengths
        whole = -(-lengths // self._multiple) * self._multiple
        return np.minimum(whole, np.maximum(lengths, self.max_length))

    def batch_length(self, longest: int, sequences: int) -> int:
        """Returns the tokens to which the sequences of a batch are padded; one alone is not.

        Args:
            longest: tokens of the longest.
            sequences: of the batch.
        """
        if sequences == 1 or self._multiple == 1:
            return longest
        return int(self.padded_lengths(np.array([longest]))[0])

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """The model inputs that the tokenizer returns for a text, in its order: `input_ids`, ..."""
        made = self.tokenizer("text", verbose=False)
        return tuple(name for name in self.tokenizer.model_input_names if name in made)

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        cut: Cut = "longest_first",
    ) -> Encoded:
        """Returns the token ids of texts; a text that cannot be tokenised gets an error.

        Args:
            texts: each a sequence.
            pairs: the second text of each sequence; None: there is none.
            cut: which of the two loses what is too long.
        """
        columns = [texts] if pairs is None else [texts, pairs]
        return self.inputs(columns, Asked({"truncation": cut}, self.input_names)).encoded

    def inputs(self, columns: Sequence[Sequence[str]], asked: Asked) -> Inputs:
        """Returns texts, given as one column or two, as inputs; see `encode`.

        An input is several sequences where the tokenizer is asked for what overflows.
        """
        parts = [self._encode_or_refuse(part, asked) for part in _slices(columns, self.max_length)]
        return joined_inputs(asked.columns, parts)

    def collate(self, encoded: Encoded, sequences: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Returns sequences as tensors padded to one length: int64 (len(sequences), length)."""
        import torch

        lengths = encoded.n_tokens[sequences]
        width = self.batch_length(int(lengths.max()), len(lengths))
        positions = np.arange(width)
        if self._padding_side == "left":
            positions = positions - (width - lengths[:, None])
            filled = positions >= 0
        else:
            filled = positions < lengths[:, None]
        taken = (encoded.starts[sequences][:, None] + positions)[filled]
        tensors = {}
        for name, values in encoded.columns.items():
            padded = np.full(filled.shape, self._pad_values.get(name) or 0, dtype=np.int64)
            padded[filled] = values[taken]
            tensors[name] = torch.from_numpy(padded)
        return tensors

    def _encode(self, columns: Sequence[Sequence[str]], asked: Asked) -> Inputs:
        given = [list(column) for column in columns]
        direct = self._direct_encoding(len(given), asked)
        if direct is not None:
            encodings = direct.encodings(given)
            n_tokens = np.array([len(one) for one in encodings], dtype=np.int64)
            cut = self._truncated(encodings, given, n_tokens)
            values = dict(direct.values(encodings, asked.columns))
            refused = self._refused(n_tokens)
            return Inputs.of_one_sequence_each(Encoded(values, n_tokens, cut, refused))
        batch = self._tokens(given, max_length=self.max_length, **asked.options)
        n_tokens = np.array([len(ids) for ids in batch["input_ids"]], dtype=np.int64)
        values = {name: flat(batch[name]) for name in asked.columns if name in batch}
        values |= asked.read(batch)
        starts, owners = np.arange(len(given[0])), batch.get("overflow_to_sample_mapping")
        if owners is None:
            cut = self._truncated(batch.encodings, given, n_tokens)
        else:
            starts, cut = np.searchsorted(owners, starts), np.zeros(len(n_tokens), np.bool_)
        return Inputs(Encoded(values, n_tokens, cut, self._refused(n_tokens)), starts)

    def _direct_encoding(self, columns: int, asked: Asked) -> DirectEncoding | None:
        """Returns what asks the tokenizer for no more than what is used of it, None if it cannot.

        Args:
            columns: texts of a sequence.
            asked: for what.
        """
        if asked.options.keys() != {"truncation"} or asked.read is not nothing_more:
            return None
        key = (columns, asked.options["truncation"], asked.columns)
        if key not in self._direct:
            call = partial(self._tokens, max_length=self.max_length, **asked.options)
            adds = self._how.get("add_special_tokens", True)
            found = DirectEncoding(self.tokenizer, call, adds)
            is_equal = is_called_directly(self.tokenizer) and found.is_equal(columns, key[2])
            self._direct[key] = found if is_equal else None
        return self._direct[key]

    def _refused(self, n_tokens: npt.NDArray[np.int64]) -> dict[int, str]:
        nothing = "the tokenizer made no tokens of this text"
        errors = {int(row): nothing for row in np.flatnonzero(n_tokens == 0)}
        for row in np.flatnonzero(n_tokens > self.max_length):
            errors[int(row)] = (
                f"the tokenizer made {n_tokens[row]} tokens of this text and did not cut it to "
                f"{self.max_length}"
            )
        return errors

    def _truncated(
        self,
        encodings: Sequence[Any] | None,
        given: Sequence[Sequence[str]],
        n_tokens: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        if encodings:  # of all: a class may cut earlier than it is told to
            return np.fromiter((bool(one.overflowing) for one in encodings), np.bool_)
        cut = np.zeros(len(n_tokens), dtype=np.bool_)
        # Tokenizers written in Python do not keep what they cut off.
        for row in np.flatnonzero(n_tokens >= self.max_length):
            whole = self._tokens([column[row] for column in given], truncation=False)
            cut[row] = len(whole["input_ids"]) > self.max_length
        return cut

    def _tokens(self, given: Sequence[Any], **how: Any) -> Any:
        # Some tokenizers pad if nothing is said.
        return self.tokenizer(*given, verbose=False, padding=False, **how, **self._how)

    def _encode_or_refuse(self, columns: Sequence[Sequence[str]], asked: Asked) -> Inputs:
        try:
            return self._encode(columns, asked)
        except Exception as error:  # whatever a tokenizer raises concerns one of the texts
            if len(columns[0]) > 1:
                rows = zip(*columns, strict=True)
                alone = [self._encode_or_refuse([[text] for text in row], asked) for row in rows]
                return joined_inputs(asked.columns, alone)
            reason = f"tokenizer: {type(error).__name__}: {error}"
            values = dict.fromkeys(asked.columns, np.zeros(0, np.int32))
            refused = Encoded(values, np.zeros(1, np.int64), np.zeros(1, np.bool_), {0: reason})
            return Inputs.of_one_sequence_each(refused)


def _slices(columns: Sequence[Sequence[str]], max_length: int) -> Iterator[Sequence[Sequence[str]]]:
    """Yields the rows of columns in parts of about `SLICE_CHARACTERS`.

    Args:
        columns: of texts.
        max_length: tokens at which they are cut.
    """
    start = held = 0
    for row, texts in enumerate(zip(*columns, strict=True)):
        lengths = list(map(len, texts))
        # Each part of a first text that is cut off is kept with each part of the second one.
        length = sum(lengths) + (math.prod(lengths) // max_length if len(lengths) > 1 else 0)
        if held and held + length > SLICE_CHARACTERS:
            yield [column[start:row] for column in columns]
            start, held = row, 0
        held += length
    if start < len(columns[0]):
        yield [column[start:] for column in columns]


def claimed_limit(tokenizer: Any, model_config: Any) -> int:
    """Returns the tokens that tokenizer and configuration say the model takes; `NO_LIMIT` for none.

    What they say may be too much: of positions that begin after the padding's, some are no text's.
    """
    of_model = of_config(model_config, "max_position_embeddings")
    claims = (getattr(tokenizer, "model_max_length", None), of_model)
    limits = [claim for claim in claims if isinstance(claim, int | float) and claim > 0]
    return int(min([*limits, NO_LIMIT]))


def of_config(model_config: Any, name: str) -> Any:
    """Returns a setting of a configuration, or of its part for text; None if neither has it."""
    found = getattr(model_config, name, None)
    return (
        getattr(getattr(model_config, "text_config", None), name, None) if found is None else found
    )
