"""What a metric is, and what of a task's results metrics are taken from."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import JobError


class Metric(Protocol):
    """A mergeable metric; a user's is a class made with the label names by label id.

    Attributes:
        name: what its state is kept under; no two metrics share it.
    """

    name: str

    def update(self, rows: Any) -> None:
        """Adds rows as the task's `Evaluation` gives them; there may be none in a call."""

    def state(self) -> dict[str, Any]:
        """Returns what was added so far as JSON values, of a size that rows do not change."""

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the state of other rows, in whatever order states come."""

    def compute(self) -> dict[str, float]:
        """Returns values by name; empty where there is nothing to say."""


class Evaluation(Protocol):
    """How the results of a task are measured against true labels.

    Attributes:
        columns: scored columns that are looked at, without a prefix.
        names: of its own metrics; a user's metric cannot have one of them.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]

    def metrics(self, labels: Sequence[str]) -> list[Metric]:
        """Returns new metrics that fit a model with these labels."""

    def rows(self, batch: pa.RecordBatch, labels: Sequence[str]) -> Iterator[Any]:
        """Yields what metrics are updated with for some rows.

        Args:
            batch: the column of true labels, then `columns`, in their order.
            labels: of the model.
        """


class Sums:
    """A metric whose state is a few arrays that add up.

    In a state, an array of up to one dimension is a number or a list; one of more is packed as
    `{"shape": [...], "data": base64(zlib(int64, little-endian, C order))}`.
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
            JobError: they have other shapes.
        """
        for key, array in self._sums.items():
            other = _decoded(state[key])
            if other.shape != array.shape:
                raise JobError(
                    f"state of metric {self.name!r}: {key!r} has shape {other.shape}, expected "
                    f"{array.shape}; it was measured for other labels, so score the chunk again"
                )
            array += other.astype(array.dtype)


def _encoded(array: npt.NDArray[Any]) -> Any:
    """Returns an array as JSON values; of more than one dimension only int64."""
    if array.ndim < 2:
        return array.tolist()
    data = zlib.compress(array.astype("<i8").tobytes())
    return {"shape": list(array.shape), "data": base64.b64encode(data).decode("ascii")}


def _decoded(value: Any) -> npt.NDArray[Any]:
    if not isinstance(value, Mapping):
        return np.asarray(value)
    data = zlib.decompress(base64.b64decode(value["data"]))
    return np.frombuffer(data, "<i8").reshape(value["shape"])
