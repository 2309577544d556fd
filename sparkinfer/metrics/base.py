"""What a metric is, and how a task's results are passed to metrics."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import JobError

LabelNames = tuple[str, ...] | Mapping[str, tuple[str, ...]]
"""Names of labels in the order of their ids; of several models, by the model's name."""


class Metric(Protocol):
    """A mergeable metric; a user's is a class, called with the label names in order of label id.

    Attributes:
        name: key of its state, unique among the metrics.
    """

    name: str

    def update(self, rows: Any) -> None:
        """Adds rows, as yielded by the task's `Evaluation`; a call may have none."""

    def state(self) -> dict[str, Any]:
        """Returns the sums so far as JSON values, whose size does not depend on the rows."""

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the state of other rows; the order of states must not matter."""

    def compute(self) -> dict[str, float]:
        """Returns values by name; empty if there are none."""


class Labels(Protocol):
    """What the true labels of some rows are; decides over all of them how they are read."""

    def add(self, column: pa.Array) -> None:
        """Adds the labels of some rows."""

    def state(self) -> dict[str, Any]:
        """Returns what was seen as JSON values, whose size does not depend on the rows."""

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the state of other rows; the order of states must not matter."""

    def groups(self) -> Sequence[str]:
        """Returns which of the groups that the `Evaluation` yields count."""

    def problem(self) -> str | None:
        """Returns why nothing can be measured, None if something can."""


class Evaluation(Protocol):
    """How the results of a task are measured against true labels.

    Attributes:
        columns: scored columns that are read, without a prefix.
        names: of the task's own metrics; a user's metric must not use any of them.
        label_types: what a column of true labels may hold, for messages.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    label_types: str

    def reads(self, kind: pa.DataType) -> bool:
        """Returns whether a column of true labels may be of a type."""

    def metrics(self, labels: Sequence[str]) -> list[Metric]:
        """Returns new metrics for a model with these labels."""

    def labels(self, labels: Sequence[str]) -> Labels:
        """Returns a new account of true labels, for a model with these labels."""

    def rows(self, batch: pa.RecordBatch, labels: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yields groups of some rows, each with what to update metrics with.

        A row may be in several groups, one for each way in which its label may be read. See
        `Labels.groups` for which of them count in the end.

        Args:
            batch: the column of true labels, then `columns`, in their order.
            labels: of the model.
        """


class Sums:
    """A metric whose state is a few arrays that add up.

    In a state, an array of up to one dimension is a number or a list; one with more dimensions is
    packed as `{"shape": [...], "data": base64(zlib(int64, little-endian, C order))}`.
    """

    name: str

    def __init__(self, **sums: npt.NDArray[Any]) -> None:
        self._sums = sums

    def state(self) -> dict[str, Any]:
        """Returns the arrays by name."""
        return {key: _encoded(array) for key, array in self._sums.items()}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the arrays of another state.

        Raises:
            JobError: they have different shapes.
        """
        for key, array in self._sums.items():
            other = _decoded(state[key])
            if other.shape != array.shape:
                raise JobError(
                    f"state of metric {self.name!r}: {key!r} has shape {other.shape}, expected "
                    f"{array.shape}; it was computed for other labels, so score the chunk again"
                )
            array += other.astype(array.dtype)


def _encoded(array: npt.NDArray[Any]) -> Any:
    """Returns an array as JSON values; with more than one dimension it must be int64."""
    if array.ndim < 2:
        return array.tolist()
    data = zlib.compress(array.astype("<i8").tobytes())
    return {"shape": list(array.shape), "data": base64.b64encode(data).decode("ascii")}


def _decoded(value: Any) -> npt.NDArray[Any]:
    if not isinstance(value, Mapping):
        return np.asarray(value)
    data = zlib.decompress(base64.b64decode(value["data"]))
    return np.frombuffer(data, "<i8").reshape(value["shape"])
