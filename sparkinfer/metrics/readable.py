"""Whether the true labels of a column can be read, where there is but one way to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.metrics.labels import MAX_SHOWN, SHOWN_LENGTH

Look = Callable[[pa.Array], tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]
"""Returns which rows have a label, and which of these can be read."""


class ReadableLabels:
    """What the labels of a whole column are; see `Labels`.

    Args:
        group: the one group of rows that counts.
        expected: what a label should be, for a message.
        look: looks at the labels of some rows.
    """

    def __init__(self, group: str, expected: str, look: Look) -> None:
        self._group = group
        self._expected = expected
        self._look = look
        self._readable = 0
        self._others = 0
        self._shown: set[str] = set()

    def add(self, column: pa.Array) -> None:
        """Adds the labels of some rows."""
        is_there, is_readable = self._look(column)
        strange = is_there & ~is_readable
        self._readable += int(np.count_nonzero(is_there & is_readable))
        self._others += int(np.count_nonzero(strange))
        self._show(str(label) for label in column.filter(pa.array(strange)).to_pylist())

    def state(self) -> dict[str, Any]:
        """Returns what was seen."""
        shown = sorted(self._shown)
        return {"readable": self._readable, "others": self._others, "shown": shown}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the state of other rows."""
        self._readable += state["readable"]
        self._others += state["others"]
        self._show(state["shown"])

    def groups(self) -> tuple[str, ...]:
        """Returns the one group."""
        return (self._group,)

    def problem(self) -> str | None:
        """Returns why nothing can be measured if there are labels and none can be read."""
        if self._readable or not self._others:
            return None
        shown = ", ".join(map(repr, sorted(self._shown)))
        return f"none of {self._others:,} labels, such as {shown}, is {self._expected}"

    def _show(self, labels: Iterable[str]) -> None:
        """Keeps the first in the order of the alphabet, the same however the rows are divided."""
        cut = {label.strip()[:SHOWN_LENGTH] for label in labels}
        self._shown = set(sorted(self._shown | cut)[:MAX_SHOWN])
