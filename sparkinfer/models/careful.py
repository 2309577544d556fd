"""Runs suspects alone: inputs that ran when a worker died; see `sparkinfer.workers.suspects`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.batching.planner import IntArray
from sparkinfer.models.tokens import Encoded, EncodedRows, Inputs, encode_rows
from sparkinfer.workers.suspects import DEADLY, Suspects

TOKENIZER, MODEL = "tokenizer", "model"
"""Lanes of the notes."""

Encode = Callable[[Sequence[Sequence[str]]], Inputs]


def encode_noted(columns: Sequence[pa.Array], encode: Encode, suspects: Suspects) -> EncodedRows:
    """Returns the model inputs of rows, with a note of them while they are in the tokenizer.

    Suspects go through it alone before; deadly ones have an error in place of an input.

    Args:
        columns: see `encode_rows`.
        encode: see `encode_rows`.
        suspects: of this attempt.
    """
    if not suspects.is_noting:
        return encode_rows(columns, encode)
    hashes = _hashes_of_rows(columns)
    known = suspects.known
    deadly = [row for row, one in enumerate(hashes) if one in known.deadly]
    if deadly:
        columns = [_without(column, deadly) for column in columns]
    for row, one in enumerate(hashes):
        if one in known.suspected:
            suspects.running(TOKENIZER, [one], alone=True)
            encode_rows([column.slice(row, 1) for column in columns], encode)
    suspects.running(TOKENIZER, hashes)
    encoded = encode_rows(columns, encode)
    suspects.running(TOKENIZER, ())
    encoded.unreadable.update(dict.fromkeys(deadly, DEADLY))
    return encoded


def give_up_deadly(encoded: Encoded, suspects: Suspects) -> None:
    """Gives the sequences an error that have killed a worker in the model."""
    if suspects.known.deadly:
        everything = np.arange(len(encoded.n_tokens))
        for sequence, one in enumerate(hashes_of_sequences(encoded, everything)):
            if one in suspects.known.deadly:
                encoded.errors.setdefault(sequence, DEADLY)


def split_suspects(
    encoded: Encoded, sequences: IntArray, suspects: Suspects
) -> tuple[IntArray, IntArray]:
    """Returns those of some sequences that are suspects, and the others."""
    if not suspects.known.suspected:
        return sequences[:0], sequences
    hashes = hashes_of_sequences(encoded, sequences)
    are = np.array([one in suspects.known.suspected for one in hashes], dtype=np.bool_)
    return sequences[are], sequences[~are]


def hashes_of_sequences(encoded: Encoded, sequences: IntArray) -> list[str]:
    """Returns what tells sequences apart, by their tokens; the same in every process."""
    first = next(iter(encoded.columns.values()))
    starts, lengths = encoded.starts[sequences], encoded.n_tokens[sequences]
    pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
    return [_hash(first[start : start + length].tobytes()) for start, length in pairs]


def _hashes_of_rows(columns: Sequence[pa.Array]) -> list[str]:
    texts = [pc.cast(column, pa.binary()).to_pylist() for column in columns]
    # As Python writes them: a null is no empty text, and no text ends where another begins.
    return [_hash(repr(row).encode()) for row in zip(*texts, strict=True)]


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _without(column: pa.Array, rows: Sequence[int]) -> pa.Array:
    """Returns a column with nulls in some rows."""
    mask: Any = np.zeros(len(column), dtype=np.bool_)
    mask[list(rows)] = True
    return pc.if_else(pa.array(mask), pa.scalar(None, column.type), column)
