"""Finds the rows that belong together in the rows of a part, and counts what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.comparing.kinds.base import codes_of_both
from sparkinfer.comparing.outputs import PLACE, ScoredOutput
from sparkinfer.comparing.pairing import Pairs, pair, pair_alike_first, repeated, unpaired
from sparkinfer.comparing.row_key import RowKey
from sparkinfer.comparing.values import Integers
from sparkinfer.exceptions import InputError


@dataclass
class FoundRows:
    """What was found of the rows of one output.

    Attributes:
        nulls: rows with a null among the columns of the key.
        repeats: rows with the values of another one.
        alone: rows that the other output has not.
        first_alone: places of the first of them.
    """

    nulls: int = 0
    repeats: int = 0
    alone: int = 0
    first_alone: Integers = field(default_factory=lambda: np.zeros(0, np.int64))


class Matching:
    """Pairs rows by a key, part by part.

    Args:
        key: what tells them apart.
        results: names of columns of results, in the one output and in the other: of rows with the
            same key, those meet first in which these are the same, too.
        most: rows without another that are named.
    """

    def __init__(self, key: RowKey, results: Sequence[tuple[str, str]], most: int) -> None:
        self._key = key
        self._results = results
        self._most = most
        self.found = FoundRows(), FoundRows()
        self.pairs = 0
        self.repeated = 0

    def match(self, a: pa.Table, b: pa.Table) -> Pairs:
        """Returns which rows of a part belong together."""
        names = self._key.columns.names
        codes = codes_of_both([(a[name], b[name]) for name in names])
        is_repeated = repeated(*codes)
        pairs = self._pairs(a, b, codes, [is_repeated[one] for one in codes])
        self.pairs += len(pairs.a)
        self.repeated += int(np.count_nonzero(is_repeated[codes[0][pairs.a]]))
        for found, rows, code, paired in zip(self.found, (a, b), codes, pairs, strict=True):
            self._count(found, rows, code, unpaired(paired, len(rows)))
        return pairs

    def _pairs(
        self,
        a: pa.Table,
        b: pa.Table,
        codes: tuple[Integers, Integers],
        is_repeated: Sequence[npt.NDArray[np.bool_]],
    ) -> Pairs:
        one, other = (np.flatnonzero(~flags) for flags in is_repeated)
        plain = pair(codes[0][one], codes[1][other])
        often_a, often_b = (np.flatnonzero(flags) for flags in is_repeated)
        if not len(often_a) or not len(often_b):
            return Pairs(one[plain.a], other[plain.b])
        full = self._full_codes(a.take(pa.array(often_a)), b.take(pa.array(often_b)))
        alike = pair_alike_first(codes[0][often_a], codes[1][often_b], *full)
        return Pairs(
            np.concatenate([one[plain.a], often_a[alike.a]]),
            np.concatenate([other[plain.b], often_b[alike.b]]),
        )

    def _full_codes(self, a: pa.Table, b: pa.Table) -> tuple[Integers, Integers]:
        """Returns integers for rows, equal exactly where both the key and the results are."""
        names = [*((name, name) for name in self._key.columns.names), *self._results]
        columns = [(a[one], b[other]) for one, other in names]
        return codes_of_both([(one, other) for one, other in columns if one.type == other.type])

    def _count(self, found: FoundRows, rows: pa.Table, codes: Integers, alone: Integers) -> None:
        is_null = np.zeros(len(rows), np.bool_)
        for name in self._key.columns.names:
            is_null |= rows[name].is_null().to_numpy()
        found.nulls += int(np.count_nonzero(is_null))
        times = np.bincount(codes) if len(codes) else codes
        found.repeats += int(times[times > 1].sum())
        found.alone += len(alone)
        places = rows[PLACE.name].to_numpy()[alone]
        found.first_alone = np.sort(np.append(found.first_alone, places))[: self._most]

    def check(self, a: ScoredOutput, b: ScoredOutput, unseen: Sequence[str]) -> None:
        """Raises InputError if it is not known which rows belong together, or none do.

        Args:
            a: the one output.
            b: the other.
            unseen: columns that models read and that are not in the key.
        """
        names = ", ".join(self._key.columns.names)
        for output in (a, b):
            if not output.rows:
                raise InputError(f"{output.path!r} has no rows: there is nothing to compare")
        for output, found in zip((a, b), self.found, strict=True):
            if self._key.is_asked:
                _refuse_key(names, output, found)
        if self.repeated and unseen:
            raise InputError(
                f"{self.repeated:,} of {self.pairs:,} rows have the values of other rows in "
                f"{names}, and {', '.join(unseen)}, which the models read, is not in both outputs: "
                "which rows belong together is not known. Give --on KEY, or score again with "
                "more in --carry-cols"
            )
        if not self.pairs:
            raise InputError(
                f"no row of {a.path!r} has the values of one of {b.path!r} in {names}; if one of "
                "these columns differs, give --on with the others"
            )


def _refuse_key(names: str, output: ScoredOutput, found: FoundRows) -> None:
    if found.nulls:
        raise InputError(
            f"on={names}: {found.nulls:,} of {output.rows:,} rows of {output.path!r} are null "
            "there; name columns that tell every row from the others"
        )
    if found.repeats:
        raise InputError(
            f"on={names}: {found.repeats:,} of {output.rows:,} rows of {output.path!r} have the "
            "values of another row; name columns that tell every row from the others"
        )
