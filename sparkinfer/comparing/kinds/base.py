"""How results of one kind are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.comparing.differences import Differences
from sparkinfer.comparing.values import Integers, codes_of

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


class Unlike(NamedTuple):
    """How some rows differ, in their order.

    Attributes:
        changed: whether the result is another, bool (rows,).
        differences: how far the results are apart, in the kind's own measure, float64 (rows,).
    """

    changed: Flags
    differences: Numbers


@dataclass(frozen=True)
class Summary:
    """What the results of all rows come to.

    Attributes:
        changed: rows whose result is another; None: the results are numbers, of which none need be
            the same.
        measure: what the difference of a row is.
        changes: rows by what the result was and is; empty: the kind has no names for them.
        differences: by what was measured.
        counts: of anything else, by what it is.
        only_a: labels that only the one model has.
        only_b: labels that only the other has.
        notes: what there is to know.
    """

    changed: int | None
    measure: str
    changes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    differences: Mapping[str, Differences] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ResultComparison(Protocol):
    """Compares results, part by part."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads of both, without a prefix."""

    def add(self, a: pa.Table, b: pa.Table) -> Unlike:
        """Compares rows that belong together, of which none has an error.

        Args:
            a: `columns` of the one output.
            b: of the other, in the same order of rows.

        Raises:
            InputError: the results cannot be compared.
        """

    def summary(self) -> Summary:
        """Returns what all rows come to."""


def together(a: pa.ChunkedArray, b: pa.ChunkedArray) -> pa.Array:
    """Returns the values of two columns of one type, one after the other."""
    return pa.concat_arrays([pa.array([], a.type), *a.chunks, *b.chunks])


def codes_of_both(
    pairs: Sequence[tuple[pa.ChunkedArray, pa.ChunkedArray]],
) -> tuple[Integers, Integers]:
    """Returns integers for the rows of both sides, equal exactly where all columns are."""
    codes = codes_of([together(a, b) for a, b in pairs])
    rows = len(pairs[0][0])
    return codes[:rows], codes[rows:]


def count_changes(
    changes: Counter[tuple[str, str]], a: pa.ChunkedArray, b: pa.ChunkedArray
) -> None:
    """Adds what values became, of rows that have changed."""
    changes.update(zip(map(_named, a.to_pylist()), map(_named, b.to_pylist()), strict=True))


def _named(value: str | None) -> str:
    return "null" if value is None else value
