"""What a batched function is given and returns: lists of items, in this module."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Set, Sized
from itertools import islice
from typing import Any, Protocol

import numpy as np

from sparkinfer.exceptions import BatchOutputError


class Payload(Protocol):
    """How items become the input of a function and its output becomes their results.

    Attributes:
        is_padded: whether items are padded to the longest of their batch.
    """

    is_padded: bool

    def kind(self, content: Any) -> Hashable:
        """Returns what must be equal of items that share a batch."""

    def inputs(self, contents: list[Any]) -> Any:
        """Returns what the function is given."""

    def call(self, function: Any, inputs: Any) -> Any:
        """Returns what the function returns."""

    def results(self, outputs: Any, count: int) -> list[Any]:
        """Returns one result for each item, in their order.

        Raises:
            BatchOutputError: there are more or fewer.
        """


_UNORDERED = (str, bytes, Mapping, Set)
"""Can be gone through, and are no sequence of results."""


def _is_table(outputs: Any) -> bool:
    """Returns whether it would be gone through by columns."""
    return hasattr(outputs, "columns")


def own(row: Any) -> Any:
    """Returns a copy of a row of an array or tensor.

    The function may use the array again for its next batch, and who keeps one row would keep those
    of all other callers.
    """
    if isinstance(row, np.ndarray):
        return row.copy()
    return row.clone() if hasattr(row, "clone") else row


class Lists:
    """A list of items in, a sequence of results out."""

    is_padded = False

    def kind(self, content: Any) -> Hashable:
        """Returns the same for all."""
        return None

    def inputs(self, contents: list[Any]) -> list[Any]:
        """Returns the items."""
        return contents

    def call(self, function: Any, inputs: list[Any]) -> Any:
        """Returns what the function returns."""
        return function(inputs)

    def results(self, outputs: Any, count: int) -> list[Any]:
        """Returns the outputs, checked."""
        if (
            not isinstance(outputs, Iterable)
            or isinstance(outputs, _UNORDERED)
            or _is_table(outputs)
        ):
            raise BatchOutputError(
                f"the function returned {type(outputs).__name__} for a batch of {count} items; it "
                "must return a list with one result for each, in order"
            )
        results = list(islice(outputs, count + 1))  # of some there is no end
        if len(results) != count:
            found = len(outputs) if isinstance(outputs, Sized) else len(results)
            at_least = "at least " if found == count + 1 and not isinstance(outputs, Sized) else ""
            raise BatchOutputError(
                f"the function returned {at_least}{found} results for a batch of {count} items; "
                "it must return one for each, in order"
            )
        return [own(row) for row in results] if hasattr(outputs, "dtype") else results


def length_of(content: Any) -> int:
    """Returns the length of an item: of a mapping its longest value, 1 of what has none."""
    if content is None:
        return 0
    if isinstance(content, Mapping):
        return max(map(length_of, content.values()), default=0)
    shape = getattr(content, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else 1
    return len(content) if isinstance(content, Sized) else 1
