"""An engine that writes made-up scores: for tests of what a run does with what engines give it.

It reads the input and writes files as real engines do; no model is loaded, so that a test can run
hundreds of jobs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.file_input import FileInput
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.runner import run_job
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.gate import Verdict
from sparkinfer.models.tasks import make_task
from sparkinfer.models.tasks.base import scored_schema
from sparkinfer.option_groups import TaskConfig
from sparkinfer.plan.phases import LOAD
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkLedger, ChunkTask, ScoredChunk
from sparkinfer.plan.prelude import Prelude
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.processor import ProcessorSpec
from sparkinfer.rows.rescoring import Rescoring
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.storage import make_folder
from sparkinfer.workers.statistics import ScoringStatistics

CLASSIFICATION = make_task(TaskConfig("text-classification"))
LABELS = ("NEGATIVE", "POSITIVE")


FAILURE = "model: made up"
"""The `error` of a row that fails."""


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
    table = pa.Table.from_arrays(columns, schema=scored_schema(CLASSIFICATION))
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
        scores: what it says of rows.
        resolved: what the verdict says of the task.
        calls: the numbers of the chunks that were scored, in a list for each call of `score`.
    """

    config: ScoringConfig
    dtype: str = "float32"
    parts: int = 1
    before_chunk: Callable[[ChunkTask], None] = lambda task: None
    failing: Container[int] = ()
    scores: Callable[..., pa.Table] = scores_of
    resolved: Mapping[str, Any] = field(default_factory=dict)
    calls: list[list[int]] = field(default_factory=list)

    @property
    def scored(self) -> list[int]:
        """The numbers of the chunks that were scored."""
        return [number for call in self.calls for number in call]

    def workers(self) -> Workers:
        return Workers("cpu", 1)

    def close(self) -> None:
        pass

    def on_one_worker(self, act: Any, warm_up: Any) -> Verdict:
        return Verdict(
            Acceleration("none", self.dtype), "cpu", 0.0, 1e-4, LABELS, 64, task=self.resolved
        )

    def score(
        self, plan: Plan, tasks: Iterable[ChunkTask], ledger: ChunkLedger, progress: Progress
    ) -> None:
        progress.enter(LOAD)
        self.calls.append([])
        processor = _made_up(plan.processor, partial(self.scores, failing=self.failing))
        for task in tasks:
            self.before_chunk(task)
            table = pa.Table.from_batches(plan.reader.read(task.chunk.pieces), plan.columns.read)
            scored = pa.Table.from_batches(
                processor.process(table.to_batches()), _plain(plan.columns.scored, plan)
            )
            columns = [*table.select(plan.columns.carried.names).columns, *scored.columns]
            files = self._write(plan, task, pa.table(columns, schema=plan.columns.output))
            self.calls[-1].append(task.chunk.number)
            ledger.commit(ScoredChunk(task.chunk, task.staging, files, 0.5))

    def _write(self, plan: Plan, task: ChunkTask, table: pa.Table) -> tuple[WrittenFile, ...]:
        make_folder(task.staging)
        writer = ScoredWriter(task.staging, plan.columns, plan.measure)
        files = []
        for part in range(self.parts):
            rows = table.take(pa.array(range(part, table.num_rows, self.parts), pa.int64()))
            files.append(writer.write_tables(f"{uuid.uuid4().hex}.parquet", [rows]))
        return tuple(files)


@dataclass
class _MadeUp:
    """A processor with made-up scores that has the columns of another."""

    spec: ProcessorSpec
    scores: Callable[..., pa.Table]

    def __post_init__(self) -> None:
        self.inputs, self.fields, self.prefix = (
            self.spec.inputs,
            self.spec.fields,
            self.spec.prefix,
        )
        self.statistics = ScoringStatistics()

    def open(self, slot: Any, report: Any) -> _MadeUp:
        return self

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            texts = batch.column(batch.schema.get_field_index(self.inputs[0])).to_pylist()
            ids = [_number_in(text or "") for text in texts]
            yield from self.scores(ids, texts).combine_chunks().to_batches()


def _number_in(text: str) -> int:
    last = text.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0


def _made_up(spec: Any, scores: Callable[..., pa.Table]) -> Any:
    """Returns a processor that stands for another, and rescores where that does."""
    if not isinstance(spec, Rescoring):
        return _MadeUp(spec, scores)
    rescoring: Any = Rescoring(_MadeUp(spec.inner, scores))  # type: ignore[arg-type]
    return rescoring.open(None, None)


def _plain(scored: pa.Schema, plan: Plan) -> pa.Schema:
    """Returns the scored columns as a processor names them."""
    prefix = plan.processor.prefix
    return pa.schema([f.with_name(f.name.removeprefix(prefix)).remove_metadata() for f in scored])


def run_made_up(config: ScoringConfig, engine: MadeUpEngine | None = None) -> RunResult:
    """Runs a job with this engine."""
    return run_job(Prelude(config, FileInput(config), engine or MadeUpEngine(config)))


def write_input(folder: Path, files: int = 2, row_groups: int = 4, rows: int = 10) -> Path:
    """Writes `files` Parquet files of `row_groups` row groups of `rows` rows with growing ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        add_file(folder, number, row_groups, rows)
    return folder


def job_of_eighty_rows(classifier: Path, folder: Path) -> ScoringConfig:
    """Returns a job over two files, in four chunks, in and out of a folder."""
    return ScoringConfig(
        model=str(classifier),
        input=str(write_input(folder / "in")),
        input_col="text",
        label_col="label",
        output=str(folder / "out"),
        engine="local",
        chunks={"target_rows": 20},
    )


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
