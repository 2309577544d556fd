"""Embeddings, which have a direction and no label."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.comparing.differences import DifferenceSums
from sparkinfer.comparing.kinds.base import Numbers, Summary, Unlike
from sparkinfer.comparing.outputs import ScoredModel
from sparkinfer.exceptions import InputError

DISTANCE = "cosine distance"


class VectorComparison:
    """Compares vectors by their cosine distance, 0 to 2.

    Args:
        a: the one model.
        b: the other.
    """

    columns = ("embedding",)

    def __init__(self, a: ScoredModel, b: ScoredModel) -> None:
        self._sums = DifferenceSums()

    def add(self, a: pa.Table, b: pa.Table) -> Unlike:
        """Compares rows; the difference is their cosine distance."""
        one, other = (_vectors(table["embedding"]) for table in (a, b))
        if len(a) and one.shape != other.shape:
            raise InputError(
                f"the vectors have {one.shape[1]} and {other.shape[1]} numbers: those of models "
                "with different dimensions cannot be compared"
            )
        distances = cosine_distances(one, other)
        self._sums.add(distances)
        return Unlike(np.zeros(len(a), np.bool_), distances)

    def summary(self) -> Summary:
        """Returns how the distances are distributed."""
        found = self._sums.result()
        return Summary(None, f"the {DISTANCE}", differences={DISTANCE: found} if found else {})


def cosine_distances(a: Numbers, b: Numbers) -> Numbers:
    """Returns 1 less the cosine of the angle between the vectors of each row, float64 (rows,).

    It is computed by the distance of the unit vectors: exact 0 for equal vectors, and without the
    loss of digits that subtracting from 1 means where they are close. Two vectors of length 0 are
    at 0, one of them at 1 from any other.

    Args:
        a: float64 (rows, dimension).
        b: the same.
    """
    return np.asarray(((_units(a) - _units(b)) ** 2).sum(axis=1) / 2 + _only_one_is_zero(a, b) / 2)


def _units(vectors: Numbers) -> Numbers:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _only_one_is_zero(a: Numbers, b: Numbers) -> Numbers:
    return np.asarray(a.any(axis=1) != b.any(axis=1), np.float64)


def _vectors(lists: pa.ChunkedArray) -> Numbers:
    """Returns vectors, float64 (rows, dimension), of lists that are as long as one another."""
    widths = pc.unique(pc.list_value_length(lists)).to_pylist()
    if len(widths) > 1 or None in widths:
        raise InputError(f"the vectors of one output have different lengths: {widths}")
    values = pc.list_flatten(lists).to_numpy().astype(np.float64)
    return np.asarray(values.reshape(len(lists), widths[0] if widths else 0))
