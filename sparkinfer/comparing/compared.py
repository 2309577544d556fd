"""Two models whose results are compared, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.comparing.kinds import comparison_of
from sparkinfer.comparing.largest import LargestRows
from sparkinfer.comparing.outputs import PLACE, ScoredModel, ScoredOutput
from sparkinfer.comparing.result import Change, ModelComparison
from sparkinfer.comparing.row_pairs import FoundPair, PairedRows
from sparkinfer.comparing.values import Integers
from sparkinfer.exceptions import InputError
from sparkinfer.files.types import carried_type

MOST_CHANGES = 100
"""Changes that are named, the most frequent ones."""


class ComparedModels:
    """Compares the results of two models.

    Args:
        models: the one and the other.
        outputs: that they are in.
        most: rows that are shown.
    """

    def __init__(
        self,
        models: tuple[ScoredModel, ScoredModel],
        outputs: tuple[ScoredOutput, ScoredOutput],
        most: int,
    ) -> None:
        self.models = models
        self._results = comparison_of(*models)
        for model, output in zip(self.models, outputs, strict=True):
            for name in self._results.columns:
                if name not in model.columns:
                    raise InputError(f"{output.path!r} has no {name!r} of task {model.task!r}")
        self._outputs = outputs
        self._most = most
        self._largest = LargestRows(most)
        self._errors: Counter[tuple[bool, bool]] = Counter()
        self._with_error = np.zeros((2, 0), np.int64)

    @property
    def result_names(self) -> list[tuple[str, str]]:
        """Names of the columns of results, in the one output and in the other."""
        a, b = self.models
        return [(a.columns[name], b.columns[name]) for name in self._results.columns]

    def fields(self, side: int) -> list[pa.Field]:
        """Returns the columns that are read of an output: 0 for A, 1 for B."""
        schema, error = self._outputs[side].schema, self.models[side].error
        names = [pair[side] for pair in self.result_names]
        names += [error] if error in schema.names else []
        return [pa.field(name, carried_type(schema.field(name).type)) for name in names]

    def add(self, a: pa.Table, b: pa.Table) -> None:
        """Adds rows that belong together, with `fields` and `PLACE`."""
        places = [table[PLACE.name].to_numpy() for table in (a, b)]
        failed = [self._failed(side, table) for side, table in enumerate((a, b))]
        self._count_errors(failed, places)
        is_good = ~(failed[0] | failed[1])
        mask = pa.array(is_good)
        unlike = self._results.add(
            *(self._plain(side, table.filter(mask)) for side, table in enumerate((a, b)))
        )
        self._largest.add(*unlike, *(place[is_good] for place in places))

    def _failed(self, side: int, rows: pa.Table) -> npt.NDArray[np.bool_]:
        name = self.models[side].error
        if name not in rows.column_names:
            return np.zeros(len(rows), np.bool_)
        return np.asarray(rows[name].is_valid().to_numpy())

    def _plain(self, side: int, rows: pa.Table) -> pa.Table:
        """Returns the results with their names without a prefix."""
        names = zip(self._results.columns, self.result_names, strict=True)
        return pa.table({name: rows[pair[side]] for name, pair in names})

    def _count_errors(
        self, failed: Sequence[npt.NDArray[np.bool_]], places: Sequence[Integers]
    ) -> None:
        a, b = failed
        for kind in ((False, False), (True, False), (False, True), (True, True)):
            self._errors[kind] += int(np.count_nonzero((a == kind[0]) & (b == kind[1])))
        new = np.stack(places)[:, a != b]
        both = np.concatenate([self._with_error, new], axis=1)
        self._with_error = both[:, np.argsort(both[0], kind="stable")[: self._most]]

    @property
    def largest(self) -> list[FoundPair]:
        """The rows that differ most."""
        return [FoundPair(*one) for one in self._largest.result()]

    @property
    def with_error(self) -> list[FoundPair]:
        """The first rows with an error in one alone."""
        return [FoundPair(True, None, a, b) for a, b in self._with_error.T.tolist()]

    def result(self, rows: PairedRows) -> ModelComparison:
        """Returns how the results differ.

        Args:
            rows: of `largest` and `with_error`.

        Raises:
            InputError: they cannot be compared.
        """
        a, b = self.models
        found = self._results.summary()
        changes = Counter(found.changes).most_common()
        left_out = len(changes) - MOST_CHANGES
        named = [*self._results.columns, "error"]
        return ModelComparison(
            name_a=a.name,
            name_b=b.name,
            task=a.task,
            rows=self._errors[False, False],
            errors_a=self._errors[True, False],
            errors_b=self._errors[False, True],
            errors_both=self._errors[True, True],
            changed=found.changed,
            measure=found.measure,
            changes=tuple(Change(*names, count) for names, count in changes[:MOST_CHANGES]),
            differences=found.differences,
            counts=found.counts,
            labels_a=found.only_a,
            labels_b=found.only_b,
            largest=rows.of(self.largest, self.models, named[:-1]),
            errors=rows.of(self.with_error, self.models, named),
            notes=(
                *found.notes,
                *([f"{left_out:,} more kinds of changes"] if left_out > 0 else []),
            ),
        )
