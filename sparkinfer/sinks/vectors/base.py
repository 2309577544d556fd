"""What a vector store must do, and what it keeps about its vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sparkinfer.exceptions import OutputError, SparkInferError
from sparkinfer.sinks.vectors.uri import StoreUri

SPACE = (
    "model_fingerprint",
    *(f"task.resolved.{name}" for name in ("pooling", "layers", "normalize")),
    *(f"task.resolved.{name}" for name in ("truncate_dim", "dimension")),
)
"""Settings of a model by which vectors can be compared with one another; a prompt is none."""


class StoreAwayError(Exception):
    """A store does not answer, or broke off; it may be asked again."""


def unreachable(uri: StoreUri, error: StoreAwayError) -> OutputError:
    """Returns the error of a store that does not answer before anything has begun."""
    return OutputError(
        f"{uri} cannot be reached ({error}); correct the address, or start the server"
    )


class RepeatedKeyError(SparkInferError):
    """An id is there already, and is of a row of another chunk."""


@dataclass(frozen=True)
class About:
    """What a store keeps about a collection.

    Attributes:
        run: id of the run whose vectors these are.
        output: its folder.
        space: what made them; see `SPACE`.
        dimension: numbers of each.
        distance: by which they are compared.
        key: column of the ids; None: a row's chunk and place.
        metadata: columns kept beside each.
        token: tells the collection from one of the same name before it.
    """

    run: str
    output: str
    space: Mapping[str, Any]
    dimension: int
    distance: str
    key: str | None
    metadata: tuple[str, ...]
    token: str

    def to_json(self) -> str:
        """Returns it as text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of_json(cls, text: str, where: str) -> About:
        """Returns it as it was before it became text.

        Raises:
            OutputError: it is damaged, or of a version that is not known here.
        """
        try:
            values = json.loads(text)
            return cls(**{**values, "metadata": tuple(values["metadata"])})
        except (ValueError, TypeError, KeyError):
            raise OutputError(
                f"{where}: what is kept about its vectors cannot be read; name another collection "
                "or table"
            ) from None


@dataclass(frozen=True)
class VectorRows:
    """Rows for a store.

    Attributes:
        ids: of each, none twice.
        vectors: float32 (rows, dimension).
        metadata: of each, by column: texts, whole numbers, numbers, booleans or None.
        gone: ids of rows that have no vector, and so are not to be there.
    """

    ids: Sequence[str]
    vectors: npt.NDArray[np.float32]
    metadata: Sequence[Mapping[str, Any]]
    gone: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Neighbour:
    """A vector near another.

    Attributes:
        id: of its row.
        distance: smaller is nearer: one minus the cosine, Euclidean, or the inner product with its
            sign turned.
        metadata: by column; what is null is left out.
    """

    id: str
    distance: float
    metadata: Mapping[str, Any]


class VectorStore(Protocol):
    """A collection or table of vectors; used by one thread at a time.

    Whatever it raises as StoreAwayError may be done again.
    """

    def look(self) -> About | None:
        """Returns what is kept about the collection, None if there is none yet.

        Changes nothing.

        Raises:
            OutputError: it cannot be used or made, or holds what no run put there.
            StoreAwayError: the store does not answer.
        """

    def refuse_names(self, metadata: Sequence[str]) -> None:
        """Raises ConfigError if a column's name is one that it does not keep metadata under."""

    def make(self, about: About) -> None:
        """Makes the collection, empty, in place of one of the same name.

        Whoever still writes to the one before, by its token, writes nothing more.

        Raises:
            OutputError: it cannot be made.
            StoreAwayError: the store does not answer.
        """

    def write(self, about: About, chunk: int, rows: VectorRows) -> None:
        """Puts rows there, in place of what is there by the same ids, or nothing of them.

        Args:
            about: of the collection that is meant.
            chunk: that they are of.
            rows: at most as many as `batch_rows`.

        Raises:
            RepeatedKeyError: an id is there, and is of another chunk.
            OutputError: it is another collection by now, or does not take the rows.
            StoreAwayError: the store does not answer.
        """

    def nearest(self, about: About, vector: npt.NDArray[np.float32], k: int) -> list[Neighbour]:
        """Returns the nearest of the collection, at most so many, the nearest first.

        Raises:
            OutputError: it does not take the question.
            StoreAwayError: the store does not answer.
        """

    def count(self) -> int:
        """Returns the number of vectors.

        Raises:
            StoreAwayError: the store does not answer.
        """

    def close(self) -> None:
        """Releases the store."""


def space_of(settings: Mapping[str, Any], model: str = "") -> dict[str, Any]:
    """Returns what of a run's settings made its vectors; see `SPACE`.

    Args:
        settings: of a run, by name.
        model: name of the model among several.
    """
    prefix = f"models.{model}." if model else ""
    return {name: settings.get(prefix + name) for name in SPACE}
