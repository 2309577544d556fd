"""What a run is asked to put into a vector store: which columns of its output, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError
from sparkinfer.models.tasks.embedding import Embedding
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.processor import PlannedProcessor
from sparkinfer.rows.reading import ROW_ID
from sparkinfer.rows.several import members_of
from sparkinfer.sinks.vectors.uri import StoreUri, parse_store

VECTOR = "embedding"
"""Column of a vector, without the prefix of its model."""


@dataclass(frozen=True)
class AskedVectors:
    """What goes to a store.

    Attributes:
        uri: of the store.
        model: name of the model that makes the vectors, empty for one alone.
        vector: column of the output that holds them.
        key: column whose values are the ids; None: rows get ids.
        metadata: columns of the output that are kept beside each vector.
        distance: by which the store compares vectors.
        batch_rows: rows that are sent at a time.
        keeps_files: whether the output has its files as well.
    """

    uri: StoreUri
    model: str
    vector: str
    key: str | None
    metadata: tuple[str, ...]
    distance: str
    batch_rows: int
    keeps_files: bool

    @property
    def id(self) -> str:
        """Column of the output that holds the ids."""
        return self.key or ROW_ID.name

    def settings(self) -> dict[str, Any]:
        """Returns what of it a run must not change when it goes on, by option, as JSON values."""
        return {
            "vectors.store": self.uri.plain,
            "vectors.key": self.key,
            "vectors.metadata": list(self.metadata),
            "vectors.distance": self.distance,
            "vectors.parquet": self.keeps_files,
            "vectors.model": self.model,
        }

    def check(self, columns: Columns) -> None:
        """Raises ConfigError unless the output has the columns, in types that a store takes."""
        if self.key is not None:
            self._check_column("key", self.key, columns.output, "text or whole numbers", _is_key)
        for name in self.metadata:
            what = "text, numbers or booleans"
            self._check_column("metadata", name, columns.output, what, _is_plain)

    def _check_column(
        self, option: str, name: str, columns: pa.Schema, expected: str, fits: Any
    ) -> None:
        if name not in columns.names:
            raise ConfigError(
                f"vectors.{option}: there is no column {name!r} in the output; expected one of "
                f"{', '.join(columns.names)}"
            )
        kind = columns.field(name).type
        if not fits(kind):
            raise ConfigError(
                f"vectors.{option}: column {name!r} has type {kind}, expected {expected}; cast it "
                "before, or leave it out"
            )


def asked_vectors(config: ScoringConfig, processor: PlannedProcessor) -> AskedVectors | None:
    """Returns what goes to a store, None if nothing does.

    Raises:
        ConfigError: the store has no such name, or it is not clear which model makes the vectors.
    """
    vectors = config.vectors
    if vectors.store is None:
        return None
    model = vectors.model or _embedding_model(config, members_of(processor))
    prefix = config.by_model[model].output_prefix
    return AskedVectors(
        uri=parse_store(vectors.store),
        model=model,
        vector=prefix + VECTOR,
        key=vectors.key,
        metadata=vectors.metadata,
        distance=vectors.distance,
        batch_rows=vectors.batch_rows,
        keeps_files=vectors.parquet,
    )


def _embedding_model(config: ScoringConfig, members: Mapping[str, PlannedProcessor]) -> str:
    found = [
        name for name, one in members.items() if isinstance(getattr(one, "task", 0), Embedding)
    ]
    if not found:
        raise ConfigError(
            f"vectors.store with task={config.task.name!r}: the task makes no vectors; give --task "
            "embedding, or drop the option"
        )
    if len(found) > 1:
        raise ConfigError(
            f"vectors.store with the models {', '.join(found)}: each makes vectors, and a store "
            f"holds those of one; give --set vectors.model={found[0]}"
        )
    return found[0]


def _is_key(kind: pa.DataType) -> bool:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_text or pa.types.is_integer(kind))


def _is_plain(kind: pa.DataType) -> bool:
    is_number = pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool((_is_key(kind) or is_number) and kind != pa.uint64())
