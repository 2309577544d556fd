"""Metrics of entities: how many were found exactly, with the same label and the same characters.

A true label is the list of a row's entities, or that list as JSON. Precision, recall and F1 are
over the entities of all rows, whatever their labels (micro). Without entities to divide by, a value
is left out, and so are all where a tokenizer does not say where the found entities are.

Source: `precision_score`, `recall_score` and `f1_score` of seqeval, with their defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.files.columns import TEXT, type_name
from sparkinfer.metrics.base import Labels, Metric, Sums
from sparkinfer.metrics.classification import RowCounts
from sparkinfer.metrics.readable import ReadableLabels

GROUP = "entities"
"""The one group of rows."""

Entity = tuple[str, Any, Any]
"""Its label, its first character and the one after its last."""

EXPECTED = "a list of entities, each with entity, start and end, or JSON of that"

MAX_BATCH_ROWS = 2**12
"""Rows whose entities are made Python's at a time."""


class _Without(Enum):
    """In place of a row's true entities: there is no label, or one that cannot be read."""

    LABEL = "label"
    ENTITIES = "entities"


@dataclass(frozen=True)
class EntityRows:
    """Rows with true entities and found ones, in the order of the file.

    Attributes:
        labels: the true entities of each row.
        predictions: the found ones of each.
        unknown_labels: further rows with found entities and a label that cannot be read.
    """

    labels: Sequence[frozenset[Entity]]
    predictions: Sequence[frozenset[Entity]]
    unknown_labels: int = 0


class EntityCounts(Sums):
    """Precision, recall and F1 of entities."""

    name = "entity_counts"

    def __init__(self) -> None:
        names = ("right", "found", "true", "without_place")
        super().__init__(**{name: np.zeros((), np.int64) for name in names})

    def update(self, rows: EntityRows) -> None:
        """Counts the entities of rows."""
        for true, found in zip(rows.labels, rows.predictions, strict=True):
            self._sums["right"] += len(true & found)
            self._sums["found"] += len(found)
            self._sums["true"] += len(true)
            self._sums["without_place"] += sum(start is None for _, start, _ in found)

    def compute(self) -> dict[str, float]:
        """Returns the three."""
        right, found, true, without_place = (int(value) for value in self._sums.values())
        if without_place:
            return {}
        shares = {
            "precision": (right, found),
            "recall": (right, true),
            "f1": (2 * right, found + true),
        }
        return {name: part / whole for name, (part, whole) in shares.items() if whole}


class EntityEvaluation:
    """Compares found entities with true ones; see `Evaluation`."""

    columns: tuple[str, ...] = ("entities",)
    names: tuple[str, ...] = (RowCounts.name, EntityCounts.name)
    label_types = (
        "a list of structs with entity, start and end, or a string that holds such a list as JSON"
    )

    def reads(self, kind: pa.DataType) -> bool:
        """Returns whether labels may be of a type."""
        return TEXT.fullmatch(type_name(kind)) is not None or _is_list_of_entities(kind)

    def metrics(self, labels: Sequence[str]) -> list[Metric]:
        """Returns new metrics."""
        return [RowCounts(), EntityCounts()]

    def labels(self, labels: Sequence[str]) -> Labels:
        """Returns a new account of true labels."""
        return ReadableLabels(GROUP, EXPECTED, _look)

    def rows(self, batch: pa.RecordBatch, labels: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yields the rows that have been scored."""
        scored = batch.filter(pc.is_valid(batch.column(1)))
        for start in range(0, scored.num_rows, MAX_BATCH_ROWS):
            yield GROUP, _entity_rows(scored.slice(start, MAX_BATCH_ROWS))


def _entity_rows(scored: pa.RecordBatch) -> EntityRows:
    true, found = scored.columns
    read = [_entities(label) for label in true.to_pylist()]
    pairs = [
        (label, frozenset(_entity(one) for one in entities))
        for label, entities in zip(read, found.to_pylist(), strict=True)
        if isinstance(label, frozenset)
    ]
    unknown = sum(label is _Without.ENTITIES for label in read)
    return EntityRows([label for label, _ in pairs], [one for _, one in pairs], unknown)


def _look(column: pa.Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    read = [_entities(label) for label in column.to_pylist()]
    is_there = np.array([label is not _Without.LABEL for label in read], np.bool_)
    return is_there, np.array([isinstance(label, frozenset) for label in read], np.bool_)


def _entities(label: Any) -> frozenset[Entity] | _Without:
    """Returns the entities of a label, or the placeholder for none; no text at all is no label."""
    if isinstance(label, str):
        if not label.strip():
            return _Without.LABEL
        try:
            label = json.loads(label)
        except ValueError:
            return _Without.ENTITIES
    if label is None:
        return _Without.LABEL
    if not isinstance(label, list) or not all(map(_is_entity, label)):
        return _Without.ENTITIES
    return frozenset(map(_entity, label))


def _is_entity(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("entity"), str)
        and all(type(value.get(name)) is int for name in ("start", "end"))
    )


def _entity(value: Mapping[str, Any]) -> Entity:
    return value["entity"], value["start"], value["end"]


def _is_list_of_entities(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not pa.types.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return (
        {"entity", "start", "end"} <= set(fields)
        and TEXT.fullmatch(type_name(fields["entity"])) is not None
        and all(pa.types.is_integer(fields[name]) for name in ("start", "end"))
    )
