"""Token ids of sequences and of the inputs and rows that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.batching.planner import deduplicate
from sparkinfer.models.text_sources import Texts


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
