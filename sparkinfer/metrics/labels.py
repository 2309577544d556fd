"""True labels and predictions as label ids.

A label names one of the model's, or is a number. A number may stand for the number in a label's
name, as a rating of 4 does for "4 stars", or for a label id. Which of the two is meant shows only
in the whole column, of which a worker sees a part: so the rows with a number are measured both
ways, and `LabelsSeen` decides where the parts are added up.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.exceptions import JobError
from sparkinfer.files.columns import TEXT, type_name

K = TypeVar("K", bound=Hashable)

NAMES, NUMBERS, IDS = "names", "numbers", "ids"
"""Groups of rows: labels that are no number; those that are, read as the numbers in the names; the
same rows, read as ids."""

UNKNOWN = -1
"""In place of the id of a label that the model does not have."""

MAX_SHOWN, SHOWN_LENGTH = 5, 40
"""Labels that a message shows, and their length in characters."""

PLAIN_LABELS = "a number, a boolean or string"
"""What labels may be that are names or numbers, for messages."""

_PLAIN = re.compile(TEXT.pattern + r"|u?int\d+|float|double|halffloat|bool")

_NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
"""A label that is a number. One with leading zeros is a code."""

_NUMBER_IN_NAME = re.compile(r"(?:(?<!\S)[-+])?\d+(?:\.\d+)?")
_BOOLEANS = {"false": 0.0, "true": 1.0}
_NO_LABEL = frozenset({"", "nan"})
"""How a text column, as every column of a CSV file is, holds what is null in others."""


def is_plain_label(kind: pa.DataType) -> bool:
    """Returns whether labels that are names or numbers may be of a type."""
    return _PLAIN.fullmatch(type_name(kind)) is not None


def label_text(column: pa.Array) -> pa.Array:
    """Returns labels as text, whole numbers as digits; null where there is no label, as for NaN."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        is_whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53))
        digits = pc.cast(pc.cast(pc.if_else(is_whole, column, None), pa.int64()), pa.string())
        return pc.coalesce(digits, pc.cast(column, pa.string()))
    return pc.cast(column, pa.string())


@dataclass(frozen=True)
class ReadLabels:
    """The labels of some rows under each reading, each array of shape (rows,).

    Attributes:
        is_there: whether the row has a label.
        is_number: whether that is a number.
        ids: the label id by each group's reading, `UNKNOWN` where there is none; of use only for
            the rows of that group.
    """

    is_there: npt.NDArray[np.bool_]
    is_number: npt.NDArray[np.bool_]
    ids: Mapping[str, npt.NDArray[np.int64]]

    def groups(self) -> Iterator[tuple[str, npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
        """Yields each group that has rows: its name, which rows are in it, the ids of all rows."""
        for group, ids in self.ids.items():
            rows = self.is_there & (self.is_number == (group != NAMES))
            if rows.any():
                yield group, rows, ids


class LabelNames:
    """What a true label may be called, given the names of a model's labels.

    A name that several ids share means the first: predictions do not distinguish them. Case
    and surrounding spaces do not matter, unless names differ in nothing else.

    Args:
        names: of the labels, in the order of their ids.
    """

    def __init__(self, names: Sequence[str]) -> None:
        first = {name: index for index, name in reversed(list(enumerate(names)))}
        self._count = len(names)
        self._first = [first[name] for name in names]
        self._exact = first
        self._folded = _unambiguous((_fold(name), index) for name, index in first.items())
        numbers = ((_number_in_name(name), index) for name, index in first.items())
        self._numbers = _unambiguous((n, index) for n, index in numbers if n is not None)

    def read(self, column: pa.Array) -> ReadLabels:
        """Returns what the labels of some rows may mean."""
        encoded = label_text(column).dictionary_encode()
        values = encoded.dictionary.to_pylist()
        meanings = np.array([self._meaning(value) for value in [*values, ""]], np.int64)
        rows = meanings[pc.fill_null(encoded.indices, len(values)).to_numpy()]
        ids = {group: rows[:, 2 + place] for place, group in enumerate((NAMES, NUMBERS, IDS))}
        return ReadLabels(rows[:, 0].astype(bool), rows[:, 1].astype(bool), ids)

    def _meaning(self, text: str) -> tuple[int, int, int, int, int]:
        """Returns whether there is a label, whether it is a number, and the id by each reading."""
        folded = _fold(text)
        named = self._exact.get(text, self._folded.get(folded, UNKNOWN))
        number = _number(folded)
        if folded in _BOOLEANS and named != UNKNOWN:
            number = None
        is_there = folded not in _NO_LABEL or named != UNKNOWN
        if number is None:
            return is_there, False, named, UNKNOWN, UNKNOWN
        return is_there, True, UNKNOWN, self._numbers.get(number, UNKNOWN), self._by_id(number)

    def _by_id(self, number: float) -> int:
        is_id = number.is_integer() and 0 <= number < self._count
        return self._first[int(number)] if is_id else UNKNOWN


@lru_cache(maxsize=8)
def label_names(names: tuple[str, ...]) -> LabelNames:
    """Returns the `LabelNames` of a model; kept, since it is asked for with every batch."""
    return LabelNames(names)


class LabelsSeen:
    """What the true labels of a whole column are, from which follows how its numbers are read.

    Args:
        names: of the model's labels, in the order of their ids.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._model = tuple(names)
        self._names = label_names(self._model)
        self._known = dict.fromkeys((NAMES, NUMBERS, IDS), 0)
        self._unknown = dict(self._known)
        self._shown: set[str] = set()

    def add(self, column: pa.Array) -> None:
        """Adds the labels of some rows."""
        read = self._names.read(column)
        for group, rows, ids in read.groups():
            known = int(np.count_nonzero(rows & (ids != UNKNOWN)))
            self._known[group] += known
            self._unknown[group] += int(np.count_nonzero(rows)) - known
        there = label_text(column.filter(pa.array(read.is_there)))
        self._show(text.strip()[:SHOWN_LENGTH] for text in there.unique().to_pylist())

    def state(self) -> dict[str, Any]:
        """Returns the counts and some labels as JSON values of bounded size."""
        counts = {"known": dict(self._known), "unknown": dict(self._unknown)}
        return {**counts, "shown": sorted(self._shown)}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the state of other rows; the order does not matter."""
        for group in self._known:
            self._known[group] += state["known"][group]
            self._unknown[group] += state["unknown"][group]
        self._show(state["shown"])

    def groups(self) -> tuple[str, ...]:
        """Returns the groups of rows that count, `NAMES` first.

        Numbers are ids where all of them are, unless all are numbers in the names, too.
        """
        as_ids = self._unknown[NUMBERS] and not self._unknown[IDS]
        return NAMES, IDS if as_ids else NUMBERS

    def problem(self) -> str | None:
        """Returns why nothing can be measured if no row's label is one of the model's."""
        rows = sum(self._known[group] + self._unknown[group] for group in self.groups())
        if not rows or any(self._known[group] for group in self.groups()):
            return None
        return (
            f"none of {rows:,} labels, such as {_listed(sorted(self._shown))}, is one of the "
            f"model's, {_listed(self._model)}; give labels by these names, or as ids that are all "
            f"from 0 to {len(self._model) - 1}"
        )

    def _show(self, labels: Iterable[str]) -> None:
        """Keeps the first in the order of the alphabet, the same however the rows are divided."""
        self._shown = set(sorted(self._shown.union(labels))[:MAX_SHOWN])


def _fold(text: str) -> str:
    return text.strip().casefold()


def _number(folded: str) -> float | None:
    """Returns the number that a label is, with its spaces gone and in lower case."""
    if folded in _BOOLEANS:
        return _BOOLEANS[folded]
    return float(folded) if _NUMBER.fullmatch(folded) else None


def _number_in_name(name: str) -> float | None:
    """Returns the number that a name is or contains; None if there is none or more than one."""
    folded = _fold(name)
    if folded in _BOOLEANS:
        return _BOOLEANS[folded]
    found = _NUMBER_IN_NAME.findall(folded)
    return float(found[0]) if len(found) == 1 else None


def _unambiguous(pairs: Iterable[tuple[K, int]]) -> dict[K, int]:
    """Returns the ids by key, without the keys that have several."""
    ids: dict[K, set[int]] = {}
    for key, index in pairs:
        ids.setdefault(key, set()).add(index)
    return {key: min(found) for key, found in ids.items() if len(found) == 1}


def _listed(labels: Sequence[str]) -> str:
    more = ", …" if len(labels) > MAX_SHOWN else ""
    return ", ".join(repr(label[:SHOWN_LENGTH]) for label in labels[:MAX_SHOWN]) + more


def predicted_ids(column: pa.Array, names: pa.Array) -> npt.NDArray[np.int64]:
    """Returns the label ids of predictions, which are stored by name.

    Raises:
        JobError: a prediction is not among the names.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    ids = pc.index_in(pc.cast(column, pa.string()), value_set=names)
    if ids.null_count:
        strange = column.filter(pc.is_null(ids))[0].as_py()
        raise JobError(
            f"prediction {strange!r} is not one of the model's {len(names)} labels; the file was "
            "scored by another model, so score it again"
        )
    return ids.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def matrix(column: pa.Array, width: int) -> npt.NDArray[np.float32]:
    """Returns lists of the same length as float32 (rows, width).

    Raises:
        JobError: a list has another length.
    """
    wrong = pc.fill_null(pc.not_equal(pc.list_value_length(column), width), True)
    if pc.any(wrong).as_py():
        strange = column.filter(wrong)[0].as_py()
        raise JobError(
            f"probabilities {strange}: expected {width} numbers, one per label; the file was "
            "scored by another model, so score it again"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(-1, width)
