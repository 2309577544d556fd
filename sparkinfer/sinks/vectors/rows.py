"""Reads what goes to a vector store from a chunk's files, a bounded number of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import JobError
from sparkinfer.files.parquet import open_parquet
from sparkinfer.sinks.vectors.asked import AskedVectors
from sparkinfer.sinks.vectors.base import VectorRows


def read_vectors(paths: Iterable[str], asked: AskedVectors) -> Iterator[VectorRows]:
    """Yields the rows of one chunk's files, at most `batch_rows` at a time.

    Raises:
        JobError: an id is missing or appears twice, or a value is one that a store does not hold.
    """
    columns = list(dict.fromkeys([asked.id, asked.vector, *asked.metadata]))
    seen: set[str] = set()
    for path in paths:
        with open_parquet(path) as file:
            for batch in file.iter_batches(asked.batch_rows, columns=columns):
                yield _rows(batch, asked, seen)


def _rows(batch: pa.RecordBatch, asked: AskedVectors, seen: set[str]) -> VectorRows:
    ids = _ids(batch.column(batch.schema.get_field_index(asked.id)), asked, seen)
    vectors = batch.column(batch.schema.get_field_index(asked.vector))
    has_one = vectors.is_valid().to_numpy(zero_copy_only=False)
    kept = batch.filter(vectors.is_valid())
    return VectorRows(
        ids=[name for name, has in zip(ids, has_one, strict=True) if has],
        vectors=_matrix(vectors.drop_null()),
        metadata=_metadata(kept, asked),
        gone=[name for name, has in zip(ids, has_one, strict=True) if not has],
    )


def _ids(column: pa.Array, asked: AskedVectors, seen: set[str]) -> list[str]:
    """Returns ids as text; those that were seen are known from then on."""
    ids = []
    for value in _values(column, asked.id):
        name = "" if value is None else str(value)
        if not name:
            raise JobError(
                f"vectors.key={asked.key!r}: a row has {'null' if value is None else 'no text'} "
                "there, expected an id; make sure that each row has one, or leave the option out, "
                "and start over with --overwrite"
            )
        if name in seen:
            raise repeated_key(f"{asked.key}={name!r} is twice in one chunk")
        seen.add(name)
        ids.append(name)
    return ids


def repeated_key(found: str) -> JobError:
    """Returns the error of an id that two rows have.

    Args:
        found: which, and where, as a sentence.
    """
    return JobError(
        f"vectors.key: {found}; ids must be there once, or one row would take the place of the "
        "other: name another column, or none, and start over with --overwrite"
    )


def _metadata(batch: pa.RecordBatch, asked: AskedVectors) -> list[dict[str, Any]]:
    columns = {
        name: _values(batch.column(batch.schema.get_field_index(name)), name)
        for name in asked.metadata
    }
    return [
        dict(zip(columns, values, strict=True))
        for values in (zip(*columns.values(), strict=True) if columns else [()] * batch.num_rows)
    ]


def _values(column: pa.Array, name: str) -> list[Any]:
    """Returns the values of a column; raises for one that would be lost or changed in a store."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise _unfit(name, f"text that is not UTF-8 ({error.reason})") from None
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise _unfit(name, f"the number {value}")
        if isinstance(value, str) and "\0" in value:
            raise _unfit(name, "text with a character of number 0")
    return values


def _unfit(name: str, what: str) -> JobError:
    return JobError(
        f"column {name!r} holds {what}, which a vector store does not keep as it is; leave the "
        "column out of vectors.metadata, or change it, and start over with --overwrite"
    )


def _matrix(column: pa.Array) -> npt.NDArray[np.float32]:
    """Returns lists of one length, float32 (rows, length)."""
    if not len(column):
        return np.zeros((0, 0), np.float32)
    numbers: npt.NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return numbers.reshape(len(column), -1).astype(np.float32, copy=False)
