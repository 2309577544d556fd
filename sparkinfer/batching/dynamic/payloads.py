"""What a batched function is given and returns: lists of items, in this module."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Set, Sized
from typing import Any, Protocol

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
        if not isinstance(outputs, Iterable) or isinstance(outputs, str | bytes | Mapping | Set):
            raise BatchOutputError(
                f"the function returned {type(outputs).__name__} for a batch of {count} items; it "
                "must return a list with one result for each, in order"
            )
        results = list(outputs)
        if len(results) != count:
            raise BatchOutputError(
                f"the function returned {len(results)} results for a batch of {count} items; it "
                "must return one for each, in order"
            )
        return results


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
