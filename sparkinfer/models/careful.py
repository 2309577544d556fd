"""Runs suspects alone: inputs that ran when a worker died; see `sparkinfer.workers.suspects`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.batching.planner import IntArray
from sparkinfer.models.encoded import Encoded, EncodedRows, Inputs, encode_rows
from sparkinfer.models.text_sources import TextSource
from sparkinfer.workers.suspects import DEADLY, Suspects

TOKENIZER, MODEL = "tokenizer", "model"
"""Lanes of the notes."""

Encode = Callable[[Sequence[Sequence[str]]], Inputs]


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
    if not suspects.is_noting:
        return _encode(rows, sources, encode)
    columns = dict.fromkeys(name for source in sources for name in source.made_of.columns)
    hashes = _hashes_of_rows([rows.column(name) for name in columns], salt)
    known = suspects.known
    for row, one in enumerate(hashes):
        if one in known.suspected:
            suspects.running(TOKENIZER, [one], alone=True)
            _encode(rows.slice(row, 1), sources, encode)
    suspects.running(TOKENIZER, hashes)
    deadly = {row: DEADLY for row, one in enumerate(hashes) if one in known.deadly}
    encoded = _encode_others(rows, deadly, sources, encode)
    suspects.running(TOKENIZER, ())
    return encoded


def _encode(rows: pa.RecordBatch, sources: Sequence[TextSource], encode: Encode) -> EncodedRows:
    return encode_rows([source.read(rows) for source in sources], encode)


def _encode_others(
    rows: pa.RecordBatch, refused: Mapping[int, str], sources: Sequence[TextSource], encode: Encode
) -> EncodedRows:
    """Returns the model inputs of rows, those that are refused left out."""
    if not refused:
        return _encode(rows, sources, encode)
    kept = np.setdiff1d(np.arange(rows.num_rows), list(refused))
    encoded = _encode(rows.take(pa.array(kept)), sources, encode)
    indices = np.full(rows.num_rows, -1, dtype=np.int64)
    indices[kept] = encoded.indices
    unreadable = {int(kept[row]): why for row, why in encoded.unreadable.items()}
    return EncodedRows(indices, encoded.inputs, {**unreadable, **refused})


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
    """Returns a column whose values Python can hold, whatever bytes they are."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return pc.cast(column, pa.binary()) if is_text else column
