"""Runs with made-up vectors, and what a store holds after them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import psycopg
import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.file_input import FileInput
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.runner import run_job
from sparkinfer.models.tasks import make_task
from sparkinfer.models.tasks.base import scored_schema
from sparkinfer.option_groups import TaskConfig
from sparkinfer.plan.prelude import Prelude
from sparkinfer.sinks.vectors import chroma
from sparkinfer.sinks.vectors.base import Neighbour
from sparkinfer.sinks.vectors.uri import StoreUri, parse_store
from tests.made_up_engine import FAILURE, MadeUpEngine, write_input

EMBEDDING = make_task(TaskConfig("embedding"))
NUMBERS = 3


def vector_of(row: int) -> list[float]:
    """Returns the made-up vector of a row: a place in space of its own."""
    return [float(row), float(row % 7), 1.0]


def vectors_of(
    ids: Sequence[int], texts: Sequence[str | None], failing: Container[int] = ()
) -> pa.Table:
    """Returns what the engine says of rows: a function of their ids."""
    errors = [
        "text is null" if text is None else FAILURE if row in failing else None
        for row, text in zip(ids, texts, strict=True)
    ]
    vectors = [None if error else vector_of(row) for row, error in zip(ids, errors, strict=True)]
    columns = [
        pa.array(vectors, pa.list_(pa.float32())),
        pa.array([None if error else 3 for error in errors], pa.int32()),
        pa.array([None if error else False for error in errors], pa.bool_()),
        pa.array(errors, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=scored_schema(EMBEDDING))


def job_with_store(classifier: Path, folder: Path, store: str, **vectors: Any) -> ScoringConfig:
    """Returns a job over forty rows in two chunks, whose vectors go to a store by their ids."""
    return ScoringConfig(
        model=str(classifier),
        task="embedding",
        input=str(write_input(folder / "in", files=1)),
        input_col="text",
        output=str(folder / "out"),
        engine="local",
        chunks={"target_rows": 20},
        vectors={"store": store, "key": "id", "distance": "l2", **vectors},
    )


def run_with_vectors(config: ScoringConfig, **options: Any) -> tuple[RunResult, MadeUpEngine]:
    """Runs such a job with made-up vectors."""
    engine = MadeUpEngine(
        config, scores=vectors_of, resolved={"dimension": NUMBERS, "pooling": ["mean"]}, **options
    )
    return run_job(Prelude(config, FileInput(config), engine)), engine


def stored_in(store: str) -> dict[str, Neighbour]:
    """Returns what a store holds, by id, each with its distance from nought."""
    uri = parse_store(store)
    rows = _of_chroma(uri) if uri.kind == "chroma" else _of_postgresql(uri)
    return {
        name: Neighbour(name, float(np.linalg.norm(np.array(vector))), _plain(metadata))
        for name, vector, metadata in rows
    }


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metadata.items() if k != chroma.CHUNK and v is not None}


def _of_chroma(uri: StoreUri) -> list[tuple[str, Any, Any]]:
    client = chromadb.PersistentClient(uri.place)
    try:
        collection = client.get_collection(uri.name, embedding_function=None)
        found = collection.get(include=["embeddings", "metadatas"])
    finally:
        client.close()
    return list(zip(found["ids"], found["embeddings"], found["metadatas"], strict=True))


def _of_postgresql(uri: StoreUri) -> list[tuple[str, Any, Any]]:
    with psycopg.connect(uri.place) as connection:
        asked = f"SELECT id, embedding::real[], metadata FROM {uri.name}"
        return connection.execute(asked).fetchall()


def lengths_of(ids: Sequence[int]) -> Mapping[str, float]:
    """Returns how far from nought the vectors of some rows are, by id as a store has it."""
    return {str(row): float(np.linalg.norm(vector_of(row))) for row in ids}
