"""Turns texts into token ids, truncated to the model's limit, and token ids into padded tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.batching.planner import deduplicate
from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.text_sources import Texts

NO_LIMIT = 10**9
"""Stands for none: tokenizers without a limit report 1e30 (`VERY_LARGE_INTEGER` of transformers),
configurations without one -1."""

MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
"""What tokenizers make for models that read text."""

SLICE_CHARACTERS = 2**20
"""Maximum characters tokenised in one call: a tokenizer keeps what it cuts off until the call ends,
at many times the size of the text."""

PaddingSide = Literal["left", "right"]

Cut = Literal["longest_first", "only_first"]
"""Which of two texts loses what is too long: token by token the longer of them, or the first."""


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
    read: Callable[[Any], Mapping[str, npt.NDArray[np.int32]]] = lambda _: {}


@dataclass
class Encoded:
    """Token ids of some sequences, one after the other.

    Attributes:
        columns: for each model input (`input_ids`, ...), and for anything else a task keeps per
            token, the values of all sequences, one after the other, int32 (sum of n_tokens,).
        n_tokens: tokens of each sequence after truncation, int64 (sequences,).
        truncated: whether tokens were cut off, bool (sequences,).
        errors: reason by index for sequences that could not be tokenised; they have no tokens.
    """

    columns: dict[str, npt.NDArray[np.int32]]
    n_tokens: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each sequence's values start in every column, int64 (sequences,)."""
        return np.cumsum(self.n_tokens) - self.n_tokens

    def beyond(self, vocabulary: int) -> dict[int, int]:
        """Returns a token that a vocabulary of this size lacks, by the sequence that has it."""
        ids = self.columns["input_ids"]
        if int(ids.max(initial=0)) < vocabulary:
            return {}
        places = np.flatnonzero(ids >= vocabulary)
        owners = np.searchsorted(np.cumsum(self.n_tokens), places, side="right")
        return dict(zip(owners.tolist(), ids[places].tolist(), strict=True))

    def refusing(self, reasons: Mapping[int, str]) -> Encoded:
        """Returns the same with errors, by index, in place of the tokens of some sequences."""
        refused = np.zeros(len(self.n_tokens), dtype=np.bool_)
        refused[list(reasons)] = True
        kept = self.values_of(np.flatnonzero(~refused))
        return Encoded(
            {name: values[kept] for name, values in self.columns.items()},
            np.where(refused, 0, self.n_tokens),
            self.truncated & ~refused,
            {**self.errors, **reasons},
        )

    def values_of(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the positions of some sequences' values in every column, in order."""
        lengths = self.n_tokens[sequences]
        shift = self.starts[sequences] - (np.cumsum(lengths) - lengths)
        values: npt.NDArray[np.int64] = np.repeat(shift, lengths) + np.arange(int(lengths.sum()))
        return values


@dataclass
class Inputs:
    """Distinct inputs of a model, each one or more consecutive sequences.

    Attributes:
        encoded: the sequences, those of one input one after the other.
        starts: the first sequence of each input, int64 (inputs,).
        kept: what a task needs of each input beside its tokens, one row per input; strings, or
            numbers.
    """

    encoded: Encoded
    starts: npt.NDArray[np.int64]
    kept: pa.Table = field(default_factory=lambda: pa.table({}))

    @classmethod
    def of_one_sequence_each(cls, encoded: Encoded, kept: pa.Table | None = None) -> Inputs:
        """Returns the sequences, each as an input of its own."""
        starts = np.arange(len(encoded.n_tokens))
        return cls(encoded, starts) if kept is None else cls(encoded, starts, kept)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Sequences of each input, int64 (inputs,)."""
        return np.diff(self.starts, append=len(self.encoded.n_tokens))

    @property
    def n_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each input, int64 (inputs,)."""
        return self._sums(self.encoded.n_tokens)

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """Whether any sequence of an input was truncated, bool (inputs,)."""
        return self._sums(self.encoded.truncated.astype(np.int64)) > 0

    def errors(self, of_sequences: Mapping[int, str]) -> dict[int, str]:
        """Returns for each input with a failed sequence the reason of its first one."""
        found: dict[int, str] = {}
        for sequence in sorted(of_sequences):
            index = int(np.searchsorted(self.starts, sequence, side="right")) - 1
            found.setdefault(index, of_sequences[sequence])
        return found

    def sequences_of(self, inputs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the sequences of some inputs, one input after the other."""
        counts = self.counts[inputs]
        shift = self.starts[inputs] - (np.cumsum(counts) - counts)
        sequences: npt.NDArray[np.int64] = np.repeat(shift, counts) + np.arange(int(counts.sum()))
        return sequences

    def kept_of(self, inputs: npt.NDArray[np.int64]) -> pa.Table:
        """Returns what is kept of some inputs, one row for each."""
        return self.kept.take(pa.array(inputs)) if self.kept.num_columns else self.kept

    def whole(self, is_scored: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Returns the inputs that have sequences, all of which are scored."""
        counts = self.counts
        are_whole = (self._sums(is_scored.astype(np.int64)) == counts) & (counts > 0)
        found: npt.NDArray[np.int64] = np.flatnonzero(are_whole)
        return found

    def _sums(self, of_sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        ends = np.concatenate([[0], np.cumsum(of_sequences)]).astype(np.int64)
        sums: npt.NDArray[np.int64] = ends[self.starts + self.counts] - ends[self.starts]
        return sums


@dataclass
class EncodedRows:
    """Rows and the model inputs for them; equal rows share one input.

    Attributes:
        indices: for each row its input's index in `inputs`, -1 if the row has none (null), int64
            (rows,). Some inputs may belong to no row.
        inputs: the inputs.
        unreadable: why a row has none, by its position, where that is not a null.
    """

    indices: npt.NDArray[np.int64]
    inputs: Inputs
    unreadable: dict[int, str] = field(default_factory=dict)


@dataclass
class EncodedWindow:
    """Rows that were encoded ahead.

    Attributes:
        encoded: the rows once for each tokenizer that they were given to.
        rows: their columns that are read beside.
    """

    encoded: tuple[EncodedRows, ...]
    rows: pa.RecordBatch


def encode_rows(
    texts: Sequence[Texts], encode: Callable[[Sequence[Sequence[str]]], Inputs]
) -> EncodedRows:
    """Returns the model inputs for some rows; a repeated input is encoded once.

    Args:
        texts: the task's texts of the rows; a row without any of them has no input.
        encode: encodes inputs, given as columns.
    """
    columns = [one.values for one in texts]
    rows: list[Any] = columns[0] if len(texts) == 1 else list(zip(*columns, strict=True))
    is_there = np.fromiter(map(_is_whole, rows), bool, len(rows))
    distinct, places = deduplicate([row for row in rows if _is_whole(row)])
    indices = np.full(len(rows), -1, dtype=np.int64)
    indices[is_there] = places
    split = [distinct] if len(texts) == 1 else list(zip(*distinct, strict=True))
    unreadable = {row: why for one in texts for row, why in one.reasons.items()}
    return EncodedRows(indices, encode(split or [()] * len(texts)), unreadable)


def _is_whole(row: Any) -> bool:
    return None not in row if isinstance(row, tuple) else row is not None


class Encoder:
    """A tokenizer with a length limit: what turns texts into model inputs.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens at which texts are truncated, special tokens included.
        padding_side: where shorter sequences of a batch are filled; None: as the tokenizer does.
        pad_id: token with which they are filled; None: the tokenizer's own.
        cut_is_asked: whether the length limit was asked for, for tasks that would rather refuse a
            text than cut it.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        padding_side: PaddingSide | None = None,
        pad_id: int | None = None,
        cut_is_asked: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cut_is_asked = cut_is_asked
        self._how: dict[str, bool] = {}
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
        other.max_length, other.cut_is_asked = max_length, True
        return other

    def without_special_tokens(self) -> Encoder:
        """Returns the same for texts that hold their special tokens already."""
        other = copy.copy(self)
        other._how = {"add_special_tokens": False}
        return other

    def padding(self, side: PaddingSide, pad_id: int) -> Encoder:
        """Returns the same with shorter sequences filled otherwise."""
        return Encoder(self.tokenizer, self.max_length, side, pad_id, self.cut_is_asked)

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
        parts = [self._encode_or_refuse(part, asked) for part in _slices(columns)]
        return joined_inputs(asked.columns, parts)

    def collate(self, encoded: Encoded, sequences: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Returns sequences as tensors padded to the longest: int64 (len(sequences), longest)."""
        import torch

        lengths = encoded.n_tokens[sequences]
        width = int(lengths.max())
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
        batch = self._tokens(given, max_length=self.max_length, **asked.options)
        n_tokens = np.array([len(ids) for ids in batch["input_ids"]], dtype=np.int64)
        values = {name: flat(batch[name]) for name in asked.columns if name in batch}
        values |= asked.read(batch)
        starts, owners = np.arange(len(given[0])), batch.get("overflow_to_sample_mapping")
        if owners is None:
            cut = self._truncated(batch, given, n_tokens)
        else:
            starts, cut = np.searchsorted(owners, starts), np.zeros(len(n_tokens), np.bool_)
        return Inputs(Encoded(values, n_tokens, cut, self._refused(n_tokens)), starts)

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
        self, batch: Any, given: Sequence[Sequence[str]], n_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        cut = np.zeros(len(n_tokens), dtype=np.bool_)
        for row in np.flatnonzero(n_tokens >= self.max_length):
            if batch.encodings:
                cut[row] = bool(batch.encodings[row].overflowing)
            else:  # tokenizers written in Python do not keep what they cut off
                texts = [column[row] for column in given]
                whole = self._tokens(texts, truncation=False)
                cut[row] = len(whole["input_ids"]) > self.max_length
        return cut

    def _tokens(self, given: Sequence[Any], **how: Any) -> Any:
        return self.tokenizer(*given, verbose=False, **how, **self._how)

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


def flat(lists: Iterable[Iterable[int]]) -> npt.NDArray[np.int32]:
    """Returns the numbers of several lists, one list after the other."""
    return np.fromiter(chain.from_iterable(lists), np.int32)


def _slices(columns: Sequence[Sequence[str]]) -> Iterator[Sequence[Sequence[str]]]:
    """Yields the rows of columns in parts of about `SLICE_CHARACTERS`."""
    start = held = 0
    for row, texts in enumerate(zip(*columns, strict=True)):
        length = sum(map(len, texts))
        if held and held + length > SLICE_CHARACTERS:
            yield [column[start:row] for column in columns]
            start, held = row, 0
        held += length
    if start < len(columns[0]):
        yield [column[start:] for column in columns]


def joined(names: Iterable[str], parts: Sequence[Encoded]) -> Encoded:
    """Returns the concatenation of what was encoded in parts."""
    errors: dict[int, str] = {}
    rows = 0
    for part in parts:
        errors.update({rows + row: reason for row, reason in part.errors.items()})
        rows += len(part.n_tokens)
    none = np.zeros(0, np.int32)
    return Encoded(
        {name: np.concatenate([none, *(part.columns[name] for part in parts)]) for name in names},
        np.concatenate([np.zeros(0, np.int64), *(part.n_tokens for part in parts)]),
        np.concatenate([np.zeros(0, np.bool_), *(part.truncated for part in parts)]),
        errors,
    )


def joined_inputs(names: Iterable[str], parts: Sequence[Inputs]) -> Inputs:
    """Returns the concatenation of inputs that were encoded in parts."""
    shifts = np.cumsum([0, *(len(part.encoded.n_tokens) for part in parts)])[:-1]
    starts = [part.starts + shift for part, shift in zip(parts, shifts, strict=True)]
    encoded = joined(names, [part.encoded for part in parts])
    return Inputs(encoded, np.concatenate([np.zeros(0, np.int64), *starts]))


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
