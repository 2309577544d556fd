"""Columns of which nothing more is known: those of functions, and of other pipelines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sparkinfer.comparing.differences import DifferenceSums
from sparkinfer.comparing.kinds.base import Flags, Numbers, Summary, Unlike, codes_of_both
from sparkinfer.comparing.outputs import ScoredModel
from sparkinfer.exceptions import InputError
from sparkinfer.files.conform import conform
from sparkinfer.files.types import NotCarriedError, carried_type, common_type


class ColumnComparison:
    """Compares columns value by value, and numbers with a fraction by how far they are apart.

    Args:
        a: the one model.
        b: the other.
    """

    def __init__(self, a: ScoredModel, b: ScoredModel) -> None:
        self.columns = tuple(name for name in a.columns if name in b.columns)
        if not self.columns:
            raise InputError(
                f"the results have no column in common: {', '.join(a.columns) or 'none'} in one, "
                f"{', '.join(b.columns) or 'none'} in the other"
            )
        self._only_a = tuple(name for name in a.columns if name not in b.columns)
        self._only_b = tuple(name for name in b.columns if name not in a.columns)
        self._changed = 0
        self._unlike = dict.fromkeys(self.columns, 0)
        self._numbers = {name: DifferenceSums() for name in self.columns}

    def add(self, a: pa.Table, b: pa.Table) -> Unlike:
        """Compares rows; the difference is how many columns have another value."""
        differences = np.zeros(len(a))
        for name, one, other in self._in_common(a, b):
            codes = codes_of_both([(one, other)])
            changed = codes[0] != codes[1]
            differences += changed
            self._unlike[name] += int(np.count_nonzero(changed))
            if pa.types.is_floating(one.type):
                self._numbers[name].add(_apart(one, other, changed))
        self._changed += int(np.count_nonzero(differences))
        return Unlike(differences > 0, differences)

    def _in_common(
        self, a: pa.Table, b: pa.Table
    ) -> Iterator[tuple[str, pa.ChunkedArray, pa.ChunkedArray]]:
        """Yields each column of both, with a type that holds the values of both."""
        for name in self.columns:
            try:
                kind = common_type(*(carried_type(table[name].type) for table in (a, b)))
            except NotCarriedError as error:
                raise InputError(
                    f"column {name!r}: its types, {error}, have no values in common; they cannot "
                    "be compared"
                ) from None
            yield name, _as(a[name], kind), _as(b[name], kind)

    def summary(self) -> Summary:
        """Returns how many rows have another value in each column."""
        found = {name: sums.result() for name, sums in self._numbers.items()}
        return Summary(
            changed=self._changed,
            measure="how many columns have another value",
            differences={name: one for name, one in found.items() if one is not None},
            counts={f"rows with another {name}": count for name, count in self._unlike.items()},
            notes=tuple(
                f"only in {side}: column {name!r}"
                for side, names in (("A", self._only_a), ("B", self._only_b))
                for name in names
            ),
        )


def _apart(one: pa.ChunkedArray, other: pa.ChunkedArray, changed: Flags) -> Numbers:
    """Returns how far numbers are apart that are finite in both, 0 for those that are equal."""
    values = [column.to_numpy().astype(np.float64) for column in (one, other)]
    is_finite = np.isfinite(values[0]) & np.isfinite(values[1])
    counts = is_finite | ~changed
    return np.asarray(np.where(is_finite, np.abs(values[0] - values[1]), 0.0)[counts])


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([conform(chunk, kind) for chunk in column.chunks], kind)
