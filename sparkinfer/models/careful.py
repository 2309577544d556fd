"""Runs suspects alone: inputs that ran when a worker died; see `sparkinfer.workers.suspects`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.batching.planner import IntArray
from sparkinfer.models.encoded import Encoded, EncodedRows, Inputs, encode_rows
from sparkinfer.models.text_sources import Texts, TextSource
from sparkinfer.workers.suspects import DEADLY, Suspects

TOKENIZER = "tokenizer"
"""Lane of the notes for what is tokenised."""

MODEL = ("model", "model, other")
"""Lanes for what goes through the model: a batch in flight keeps its own until it has landed."""

Encode = Callable[[Sequence[Sequence[str]]], Inputs]

R = TypeVar("R")


def encode_noted(
    rows: pa.RecordBatch,
    sources: Sequence[TextSource],
    encode: Encode,
    suspects: Suspects,
    salt: str = "",
) -> EncodedRows:
    """Returns the model inputs of rows, with a note of them while their texts are made and encoded.

    Suspects are encoded alone before; deadly ones have an error in place of an input.

    Args:
        rows: with at least the columns that the texts are made of.
        sources: where each of the task's texts comes from.
        encode: see `encode_rows`.
        suspects: of this attempt.
        salt: tells rows in this tokenizer from the same rows in another.
    """

    def encoded_of(some: pa.RecordBatch) -> EncodedRows:
        return encode_rows([source.read(some) for source in sources], encode)

    columns = dict.fromkeys(name for source in sources for name in source.made_of.columns)
    encoded, kept = _noted(rows, list(columns), suspects, salt, encoded_of)
    if len(kept) == rows.num_rows:
        return encoded
    indices = np.full(rows.num_rows, -1, dtype=np.int64)
    indices[kept] = encoded.indices
    unreadable = {int(kept[row]): why for row, why in encoded.unreadable.items()}
    return EncodedRows(indices, encoded.inputs, {**_refused(rows, kept), **unreadable})


def read_noted(
    rows: pa.RecordBatch, source: TextSource, suspects: Suspects, salt: str = ""
) -> Texts:
    """Returns the texts of rows, with a note of them while they are made; see `encode_noted`."""
    if source.preprocess is None:  # what runs is not the user's
        return source.read(rows)
    texts, kept = _noted(rows, source.made_of.columns, suspects, salt, source.read)
    values: list[str | None] = [None] * rows.num_rows
    for row, text in zip(kept.tolist(), texts.values, strict=True):
        values[row] = text
    reasons = {int(kept[row]): why for row, why in texts.reasons.items()}
    return Texts(values, {**_refused(rows, kept), **reasons})


def _noted(
    rows: pa.RecordBatch,
    columns: Sequence[str],
    suspects: Suspects,
    salt: str,
    make: Callable[[pa.RecordBatch], R],
) -> tuple[R, IntArray]:
    """Returns what is made of rows that are not deadly, and the places of these rows."""
    everything = np.arange(rows.num_rows)
    if not suspects.is_noting:
        return make(rows), everything
    hashes = _hashes_of_rows([rows.column(name) for name in columns], salt)
    for row, one in enumerate(hashes):
        if one in suspects.known.suspected:
            suspects.running(TOKENIZER, [one], alone=True)
            make(rows.slice(row, 1))
    suspects.running(TOKENIZER, hashes)
    are_kept = np.array([one not in suspects.known.deadly for one in hashes], dtype=np.bool_)
    kept = everything[are_kept]
    made = make(rows if are_kept.all() else rows.take(pa.array(kept)))
    suspects.running(TOKENIZER, ())
    return made, kept


def _refused(rows: pa.RecordBatch, kept: IntArray) -> dict[int, str]:
    """Returns the error of those rows that are not kept."""
    return dict.fromkeys(np.setdiff1d(np.arange(rows.num_rows), kept).tolist(), DEADLY)


def give_up_deadly(encoded: Encoded, suspects: Suspects, salt: str = "") -> None:
    """Gives the sequences an error that have killed a worker in the model."""
    if suspects.known.deadly:
        everything = np.arange(len(encoded.n_tokens))
        for sequence, one in enumerate(hashes_of_sequences(encoded, everything, salt)):
            if one in suspects.known.deadly:
                encoded.errors.setdefault(sequence, DEADLY)


def split_suspects(
    encoded: Encoded, sequences: IntArray, suspects: Suspects, salt: str = ""
) -> tuple[IntArray, IntArray]:
    """Returns those of some sequences that are suspects, and the others."""
    if not suspects.known.suspected:
        return sequences[:0], sequences
    hashes = hashes_of_sequences(encoded, sequences, salt)
    are = np.array([one in suspects.known.suspected for one in hashes], dtype=np.bool_)
    return sequences[are], sequences[~are]


def hashes_of_sequences(encoded: Encoded, sequences: IntArray, salt: str = "") -> list[str]:
    """Returns what tells sequences apart, by their tokens; the same in every process.

    Args:
        encoded: holds them.
        sequences: their indices.
        salt: tells sequences in this model from the same sequences in another.
    """
    first = next(iter(encoded.columns.values()))
    starts, lengths = encoded.starts[sequences], encoded.n_tokens[sequences]
    pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
    return [_hash(first[start : start + length].tobytes(), salt) for start, length in pairs]


def _hashes_of_rows(columns: Sequence[pa.Array], salt: str) -> list[str]:
    texts = [_comparable(column).to_pylist() for column in columns]
    # As Python writes them: a null is no empty text, and no text ends where another begins.
    return [_hash(repr(row).encode(), salt) for row in zip(*texts, strict=True)]


def _hash(content: bytes, salt: str) -> str:
    salted = f"{salt}\0".encode() + content if salt else content
    return hashlib.blake2b(salted, digest_size=8).hexdigest()


def _comparable(column: pa.Array) -> pa.Array:
    """Returns a column whose values Python can hold, whatever bytes its texts are."""
    kind = _with_bytes(column.type)
    return column if kind == column.type else pc.cast(column, kind)


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """Returns a type with bytes for text."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(_with_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _with_bytes(field.type)) for field in kind])
    return kind
