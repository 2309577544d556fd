"""What JSON values are, over many rows and files, and the Arrow type that holds them all.

A column of numbers is int64, or float64 if that holds each of them exactly. Text is never taken for
a date. Values that no other type holds alike are kept as text: numbers beyond 64 bits, numbers next
to text, objects next to lists. Nothing is rounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sparkinfer.files.types import EXACT_IN_DOUBLE

MOST_FIELDS = 1000
"""An object with more different keys than this over all rows is kept as text."""


MOST_LEVELS = 30
"""What is nested deeper is kept as text. Arrow's files hold some sixty levels."""


class Beyond(str):
    """A number that float64 cannot hold, as it is written: `1e400`."""


@dataclass
class Shape:
    """What a value was in some rows.

    Attributes:
        kinds: `bool`, `int`, `float`, `Beyond`, `str`, `list`, `dict`; none if it was always null.
        least, largest: of the whole numbers.
        items: of the elements of lists.
        fields: of the values of objects, by key.
        levels: that are looked at in lists and objects; without one they are kept as text.
    """

    kinds: set[str] = field(default_factory=set)
    least: int = 0
    largest: int = 0
    items: Shape | None = None
    fields: dict[str, Shape] = field(default_factory=dict)
    levels: int = MOST_LEVELS

    def add(self, value: Any) -> None:
        """Takes a value as `json` reads it."""
        if value is None:
            return
        kind = type(value).__name__
        self.kinds.add(kind)
        if kind == "int":
            self.least, self.largest = min(self.least, value), max(self.largest, value)
        elif not self.levels:
            return
        elif kind == "list":
            self.items = self.items or self._below()
            for item in value:
                self.items.add(item)
        elif kind == "dict" and len(self.fields) <= MOST_FIELDS:
            for key, item in value.items():
                self.fields.setdefault(key, self._below()).add(item)

    def merge(self, other: Shape) -> None:
        """Takes what another shape took."""
        self.kinds |= other.kinds
        self.least = min(self.least, other.least)
        self.largest = max(self.largest, other.largest)
        if other.items is not None:
            self.items = self.items or self._below()
            self.items.merge(other.items)
        for key, item in other.fields.items():
            self.fields.setdefault(key, self._below()).merge(item)

    def type(self) -> pa.DataType:
        """Returns the type that holds every value."""
        if not self.kinds:
            return pa.null()
        if self.kinds == {"bool"}:
            return pa.bool_()
        if self.kinds == {"int"} and self.least >= -(1 << 63) and self.largest < 1 << 63:
            return pa.int64()
        if self.kinds in ({"float"}, {"float", "int"}):
            is_exact = max(-self.least, self.largest) <= EXACT_IN_DOUBLE
            return pa.float64() if is_exact else pa.string()
        if self.kinds == {"list"} and self.items is not None:
            return pa.list_(self.items.type())
        if self.kinds == {"dict"} and self._is_struct():
            return pa.struct([pa.field(key, item.type()) for key, item in self.fields.items()])
        return pa.string()

    def _below(self) -> Shape:
        return Shape(levels=self.levels - 1)

    def _is_struct(self) -> bool:
        names = {key.lower() for key in self.fields}
        return 0 < len(self.fields) <= MOST_FIELDS and len(names) == len(self.fields)


def to_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Returns values as Arrow, in the type of their shape."""
    return pa.array([_fit(value, kind) for value in values], kind)


def _fit(value: Any, kind: pa.DataType) -> Any:
    if value is None or isinstance(value, bool):
        return json.dumps(value) if value is not None and pa.types.is_string(kind) else value
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_list(kind):
        return [_fit(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        fields = (kind.field(index) for index in range(kind.num_fields))
        return {one.name: _fit(value.get(one.name), one.type) for one in fields}
    return value


def merged(shapes: Iterable[Shape]) -> Shape:
    """Returns the shape of all values that several shapes took."""
    whole = Shape()
    for shape in shapes:
        whole.merge(shape)
    return whole
