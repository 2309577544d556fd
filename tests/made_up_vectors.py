"""Runs with made-up vectors, and what a store holds after them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.file_input import FileInput
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.runner import run_job
from sparkinfer.models.tasks import make_task
from sparkinfer.models.tasks.base import scored_schema
from sparkinfer.option_groups import TaskConfig
from sparkinfer.plan.prelude import Prelude
from sparkinfer.sinks.vectors import open_store
from sparkinfer.sinks.vectors.base import Neighbour
from sparkinfer.sinks.vectors.uri import parse_store
from tests.made_up_engine import FAILURE, MadeUpEngine, write_input

EMBEDDING = make_task(TaskConfig("embedding"))
NUMBERS = 3
FAR = 1000


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
    opened = open_store(parse_store(store))
    try:
        about = opened.look()
        if about is None:
            return {}
        nought: npt.NDArray[np.float32] = np.zeros(about.dimension, np.float32)
        count = opened.count()
        found = opened.nearest(about, nought, FAR)
        assert len(found) == count
        return {one.id: one for one in found}
    finally:
        opened.close()


def lengths_of(ids: Sequence[int]) -> Mapping[str, float]:
    """Returns how far from nought the vectors of some rows are, by id as a store has it."""
    return {str(row): float(np.linalg.norm(vector_of(row))) for row in ids}
