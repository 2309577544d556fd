"""An engine that writes made-up scores: for tests of what a run does with what engines give it.

It reads the input and writes files as real engines do; no model is loaded, so that a test can run
hundreds of jobs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.config import ScoringConfig
from sparkinfer.models.acceleration import Acceleration, Verdict
from sparkinfer.models.sources import ModelSource
from sparkinfer.models.tasks import TASKS, scored_schema
from sparkinfer.plan.ports import (
    ChunkTask,
    InputTable,
    ScoredChunk,
    ScoringRun,
    Workers,
)
from sparkinfer.plan.progress import SCORE, Progress
from sparkinfer.rows.copying import FileCopier
from sparkinfer.rows.reading import ChunkReader
from sparkinfer.rows.writing import write_tables
from sparkinfer.storage import join, make_folder

LABELS = ("NEGATIVE", "POSITIVE")


FAILURE = "model: made up"
"""The `error` of a row that fails."""

TYPES = {"id": pa.int64(), "text": pa.string(), "label": pa.int64()}
"""Of an input's columns, and of those of rows that are rescored: their places."""
PLACES = {"file": pa.int32(), "row": pa.int64(), "text": pa.string()}


def scores_of(
    ids: Sequence[int], texts: Sequence[str | None], failing: Container[int] = ()
) -> pa.Table:
    """Returns what this engine says of rows: a function of their ids."""
    shares = [(row % 10) / 10 for row in ids]
    probabilities = [[1 - share, share] for share in shares]
    errors = [
        "text is null" if text is None else FAILURE if row in failing else None
        for row, text in zip(ids, texts, strict=True)
    ]
    columns = [
        pa.array([LABELS[int(share >= 0.5)] for share in shares], pa.string()),
        pa.array([max(pair) for pair in probabilities], pa.float32()),
        pa.array(probabilities, pa.list_(pa.float32())),
        pa.array([3] * len(shares), pa.int32()),
        pa.array([False] * len(shares)),
        pa.array(errors, pa.string()),
    ]
    table = pa.Table.from_arrays(columns, schema=scored_schema(TASKS["text-classification"]))
    return table.take(
        pa.array([None if error else i for i, error in enumerate(errors)], pa.int64())
    ).set_column(5, table.schema.field(5), table.column(5))


@dataclass
class MadeUpEngine:
    """Scores an input with the columns `id` and `text`, one chunk after the other.

    Attributes:
        config: what is scored.
        dtype: of the verdict.
        parts: files that each chunk is written as.
        before_chunk: called before each chunk is scored.
        failing: ids of rows that the model raises for.
        scored: the numbers of the chunks that were scored.
    """

    config: ScoringConfig
    dtype: str = "float32"
    parts: int = 1
    before_chunk: Callable[[ChunkTask], None] = lambda task: None
    failing: Container[int] = ()
    scored: list[int] = field(default_factory=list)

    def open_input(self) -> InputTable:
        kinds = {"id": "int64", "text": "string"}
        return InputTable(("id", "text"), "parquet", str(self.config.input), kinds)

    def stage_input(self, folder: str, rows_per_file: int, paths: Sequence[str]) -> None:
        raise AssertionError("Parquet is not staged")

    def copy_files(self, copier: FileCopier, names: Sequence[str]) -> dict[str, list[str]]:
        return {name: copier.copy(name) for name in names}

    def find_workers(self) -> Workers:
        return Workers("cpu", 1)

    def run_gate(self, source: ModelSource) -> Verdict:
        return Verdict(Acceleration("none", self.dtype), "cpu", 0.0, 1e-4, LABELS, 64)

    def score(self, run: ScoringRun, progress: Progress) -> None:
        progress.enter(SCORE)
        kept = list(self.config.carry_cols or TYPES)
        types = PLACES if "row" in kept else TYPES
        schema = pa.schema([(name, types[name]) for name in dict.fromkeys([*kept, "text"])])
        reader = ChunkReader(run.read_from, schema)
        for task in run.tasks:
            self.before_chunk(task)
            table = pa.Table.from_batches(reader.read(task.chunk.pieces), schema)
            texts = table["text"].to_pylist()
            ids = _ids_in(texts) if "row" in kept else table["id"].to_pylist()
            scored = scores_of(ids, texts, self.failing)
            table = table.select(kept)
            for name, column in zip(scored.schema.names, scored.columns, strict=True):
                name_there = self.config.output_prefix + name
                kind = scored.schema.field(name).with_name(name_there)
                table = table.append_column(kind, column)
            files = self._write(task, table)
            self.scored.append(task.chunk.number)
            run.commit(ScoredChunk(task.chunk, task.staging, files, 0.5))

    def _write(self, task: ChunkTask, table: pa.Table) -> tuple[str, ...]:
        make_folder(task.staging)
        names = []
        for part in range(self.parts):
            rows = table.take(pa.array(range(part, table.num_rows, self.parts), pa.int64()))
            names.append(f"{uuid.uuid4().hex}.parquet")
            write_tables(join(task.staging, names[-1]), table.schema, [rows])
        return tuple(names)


def _ids_in(texts: Sequence[str]) -> list[int]:
    return [int(text.split()[-1]) for text in texts]


def write_input(folder: Path, files: int = 2, row_groups: int = 4, rows: int = 10) -> Path:
    """Writes `files` Parquet files of `row_groups` row groups of `rows` rows with growing ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        add_file(folder, number, row_groups, rows)
    return folder


def add_file(folder: Path, number: int, row_groups: int = 4, rows: int = 10) -> None:
    """Writes one more such file."""
    count = row_groups * rows
    ids = range(number * count, (number + 1) * count)
    table = pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "text": pa.array([f"film {i}" if i % 7 else None for i in ids], pa.string()),
            "label": pa.array([int(i % 10 >= 4) for i in ids], pa.int64()),
        }
    )
    pq.write_table(table, folder / f"in-{number}.parquet", row_group_size=max(1, rows))
