"""Entities of texts: equal if they have the same label at the same place."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.comparing.differences import DifferenceSums
from sparkinfer.comparing.kinds.base import (
    Numbers,
    Summary,
    Unlike,
    codes_of_both,
    count_changes,
)
from sparkinfer.comparing.outputs import ScoredModel
from sparkinfer.comparing.pairing import pair, unpaired
from sparkinfer.comparing.values import Integers

SCORE = "score of the same entity"
BOTH, ONLY_A, ONLY_B = "entities in both", "entities only in A", "entities only in B"


class _Entities(NamedTuple):
    """The entities of some rows, one after the other.

    Attributes:
        rows: row of each, int64 (entities,).
        values: their fields.
    """

    rows: Integers
    values: pa.Table


class EntityComparison:
    """Compares entities; a row has changed if one of them has.

    Args:
        a: the one model.
        b: the other.
    """

    columns = ("entities",)

    def __init__(self, a: ScoredModel, b: ScoredModel) -> None:
        self._changed = 0
        self._changes: Counter[tuple[str, str]] = Counter()
        self._counts = dict.fromkeys((BOTH, ONLY_A, ONLY_B), 0)
        self._scores = DifferenceSums()

    def add(self, a: pa.Table, b: pa.Table) -> Unlike:
        """Compares rows; the difference is how many entities are in one alone."""
        one, other = _entities(a["entities"]), _entities(b["entities"])
        same = pair(*_codes(one, other, ["start", "end", "word", "entity"]))
        left = unpaired(same.a, len(one.rows)), unpaired(same.b, len(other.rows))
        self._count(len(same.a), len(left[0]), len(left[1]))
        scores = [side.values["score"].to_numpy().astype(np.float64) for side in (one, other)]
        self._scores.add(np.abs(scores[0][same.a] - scores[1][same.b]))
        self._count_labels(_taken(one, left[0]), _taken(other, left[1]))
        differences = sum(
            np.bincount(side.rows[rest], minlength=len(a)).astype(np.float64)
            for side, rest in zip((one, other), left, strict=True)
        )
        unlike: Numbers = np.asarray(differences)
        self._changed += int(np.count_nonzero(unlike))
        return Unlike(unlike > 0, unlike)

    def _count(self, both: int, only_a: int, only_b: int) -> None:
        for name, count in zip(self._counts, (both, only_a, only_b), strict=True):
            self._counts[name] += count

    def _count_labels(self, a: _Entities, b: _Entities) -> None:
        """Counts what labels became of entities that are at the same place under another."""
        moved = pair(*_codes(a, b, ["start", "end", "word"]))
        before, after = a.values["entity"], b.values["entity"]
        count_changes(self._changes, before.take(pa.array(moved.a)), after.take(pa.array(moved.b)))

    def summary(self) -> Summary:
        """Returns which entities are the same, and what became of others."""
        found = self._scores.result()
        return Summary(
            changed=self._changed,
            measure="how many entities are in one alone",
            changes=dict(self._changes),
            differences={SCORE: found} if found else {},
            counts=self._counts,
        )


def _codes(a: _Entities, b: _Entities, names: list[str]) -> tuple[Integers, Integers]:
    """Returns integers that are equal where the rows of entities and some of their fields are."""
    rows = pa.chunked_array([pa.array(a.rows)]), pa.chunked_array([pa.array(b.rows)])
    fields = [(_placed(a.values, name), _placed(b.values, name)) for name in names]
    return codes_of_both([rows, *fields])


def _placed(values: pa.Table, name: str) -> pa.ChunkedArray:
    """Returns a field of entities; the word is null where they have a place."""
    if name != "word":
        return values[name]
    nothing = pa.scalar(None, values["word"].type)
    return pc.if_else(pc.is_valid(values["start"]), nothing, values["word"])


def _taken(entities: _Entities, rest: Integers) -> _Entities:
    return _Entities(entities.rows[rest], entities.values.take(pa.array(rest)))


def _entities(lists: pa.ChunkedArray) -> _Entities:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    structs = pc.list_flatten(lists)
    fields = range(structs.type.num_fields)
    values = pa.table({structs.type.field(i).name: pc.struct_field(structs, [i]) for i in fields})
    return _Entities(np.repeat(np.arange(len(lengths)), lengths), values)
