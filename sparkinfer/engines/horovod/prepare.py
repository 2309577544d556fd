"""The prepare stage: Spark tokenises chunks and writes them as Parquet that ranks can share.

Every row gets a key and goes into one row group with rows of similar length. A row group is a pair
of files of the same name, one Parquet row group each: `tokens/NAME` holds the key, the token ids
and what is known about the text, `carried/NAME` the columns that the output keeps, in the same
order. Padding is left to the ranks. Rows are sorted only within what a task holds at a time, so no
shuffle is needed.

If the processor does not encode ahead, there is only the second file, with the columns it reads.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.batching.planner import IntArray
from sparkinfer.batching.rebatch import rebatch, same_rows
from sparkinfer.batching.row_groups import cut_row_groups, growing_limits
from sparkinfer.config import BatchingConfig
from sparkinfer.exceptions import JobError
from sparkinfer.models.scorer import DEFAULT_BATCH_TOKENS
from sparkinfer.models.tokens import EncodedRows
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan
from sparkinfer.rows.processor import EncodesAhead, ProcessorSpec
from sparkinfer.spark.accelerators import CORES_PER_TASK, GPUS_PER_TASK
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import JobThreads
from sparkinfer.storage import file_system, join, make_folder, read_text, write_text
from sparkinfer.workers.steps import Step, wait_for

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TOKENS, CARRIED, LISTS = "tokens", "carried", "lists"
"""Folders for the two files of a row group, and for lists of row groups."""

ROW, N_TOKENS, TRUNCATED, SEQUENCES = "row", "n_tokens", "truncated", "sequences"
NUMBERS = (ROW, N_TOKENS, TRUNCATED, SEQUENCES)
ERROR, LENGTHS = "error", "lengths"
"""Columns of a tokens file besides the model's inputs. `n_tokens` is NULL_LENGTH where there is no
text; `error` says why a row has no tokens, null if the text is null; `sequences` is the number of
sequences of a row, and `lengths` lists the number of tokens of each."""

NULL_LENGTH = -1

BATCHES_IN_ROW_GROUP = 16
"""Full batches in a full row group, by tokens: many, so that its last, partial batch costs
little."""

LEAST_PART_ROWS = 4096
"""Worth a task of their own."""

KEYS_PER_PART = 1 << 33
"""Row keys reserved for each task, as in Spark's `monotonically_increasing_id`."""


@dataclass(frozen=True)
class PreparedFile:
    """One row group.

    Attributes:
        chunk: number of the chunk that its rows belong to.
        name: of both its files.
        first_row: key of its first row; the other keys follow without gaps.
        rows: number of rows.
        tokens: number of tokens of all its rows.
    """

    chunk: int
    name: str
    first_row: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class PrepareJob:
    """All that a task needs to prepare its rows.

    Attributes:
        plan: how rows are scored.
        batching: limits on what a task holds at a time, and the token budget of a batch.
        cores: cores that Spark gives to a task.
        folder: where to write the files, in one folder per kind. Files there that no list names
            are left over from failed attempts.
    """

    plan: Plan
    batching: BatchingConfig
    cores: int
    folder: str


def prepare(spark: SparkSession, chunks: Sequence[Chunk], job: PrepareJob) -> dict[int, list[str]]:
    """Returns the names of the lists of each chunk's row groups, by the chunk's number.

    One Spark job writes the row groups and, per task, a list of those that it wrote, so that the
    driver need not hold them all.

    Raises:
        JobError: a task failed for good.
    """
    for name in (TOKENS, CARRIED, LISTS):
        make_folder(join(job.folder, name))
    parts = _parts(chunks, spark.sparkContext.defaultParallelism)

    def write(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                name = _write_list(job.folder, prepare_part(job, index, parts[index]))
                yield pa.RecordBatch.from_pylist([{"index": index, "list": name}])

    try:
        written = spark.range(len(parts), numPartitions=max(1, len(parts))).mapInArrow(
            write, "index long, list string"
        )
        with closing(JobThreads(spark)) as threads:
            rows = wait_for(
                threads.submit(_without_gpus, spark, written),
                "the prepare stage",
                job.plan.step_timeout_s,
                lambda: _tasks_done(spark, threads.group),
            )
    except JobError:
        raise
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"the prepare stage failed: {explain(error)}") from error
    lists: dict[int, list[str]] = {}
    for row in sorted(rows, key=lambda row: int(row["index"])):
        lists.setdefault(parts[row["index"]].number, []).append(row.list)
    return lists


def _tasks_done(spark: SparkSession, group: str) -> Step:
    """Returns how many tasks of a group's jobs are done."""
    tracker = spark.sparkContext.statusTracker()
    jobs = [tracker.getJobInfo(number) for number in tracker.getJobIdsForGroup(group)]
    stages = [tracker.getStageInfo(number) for job in jobs if job for number in job.stageIds]
    done = sum(stage.numCompletedTasks for stage in stages if stage)
    return Step(f"{done} of its tasks are done", done)


def read_list(folder: str, name: str) -> list[PreparedFile]:
    """Returns the row groups that one task wrote."""
    lines = (read_text(join(folder, LISTS, name)) or "").splitlines()
    return [PreparedFile(**json.loads(line)) for line in lines]


def _write_list(folder: str, files: Iterable[PreparedFile]) -> str:
    name = f"{uuid.uuid4()}.jsonl"
    write_text(
        join(folder, LISTS, name), "".join(json.dumps(asdict(file)) + "\n" for file in files)
    )
    return name


def _parts(chunks: Sequence[Chunk], cores: int) -> list[Chunk]:
    """Returns what each task prepares: a chunk, or part of one if there are few chunks."""
    whole = [chunk for chunk in chunks if chunk.rows]
    if len(whole) >= cores:
        return whole
    max_rows = max(LEAST_PART_ROWS, -(-sum(chunk.rows for chunk in whole) // cores))
    return [
        Chunk(chunk.number, (part,))
        for chunk in whole
        for piece in chunk.pieces
        for part in piece.cut(max_rows)
    ]


def _without_gpus(spark: SparkSession, df: DataFrame) -> list[Any]:
    """Returns the rows of a DataFrame, with a last stage that requests cores but no GPU.

    With `spark.task.resource.gpu.amount` set, Spark would run only as many tasks as there are
    GPUs, and tokenising needs none. A profile with only task resources applies to the existing
    executors (standalone since Spark 3.4, YARN and Kubernetes since 3.5); with dynamic allocation
    it would request separate executors, so there the tasks keep their GPUs.
    """
    gpus = float(spark.conf.get(GPUS_PER_TASK, None) or 0)
    if gpus == 0 or spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return df.collect()
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    cores = int(spark.conf.get(CORES_PER_TASK, None) or 1)
    profile = ResourceProfileBuilder().require(TaskResourceRequests().cpus(cores)).build
    return list(df.rdd.withResources(profile).collect())


def prepare_part(job: PrepareJob, index: int, part: Chunk) -> Iterator[PreparedFile]:
    """Yields the row groups of a chunk or part of one, each once its files are written.

    Args:
        job: how to prepare them.
        index: of the part among all parts; determines the keys of the rows.
        part: where the rows are.
    """
    row = index * KEYS_PER_PART
    plan, batching = job.plan, job.batching
    budget = batching.max_batch_tokens or DEFAULT_BATCH_TOKENS[plan.workers.device_type]
    limits = growing_limits(budget, budget * BATCHES_IN_ROW_GROUP)
    batches = plan.reader.read(part.pieces)
    windows = rebatch(batches, same_rows(batching.window_rows), batching.window_bytes)
    for window in windows:
        rows = _encoded(plan.processor, window, job.cores)
        lengths = _row_tokens(rows) if rows else np.ones(window.num_rows, np.int64)
        for group in cut_row_groups(lengths, limits, max_rows=batching.window_rows):
            name = f"part-{part.number:08d}-{uuid.uuid4()}.parquet"
            kept = list(plan.columns.carried.names if rows else plan.columns.read.names)
            if rows:
                _write(job.folder, TOKENS, name, _tokens_table(rows, group, row))
            carried = pa.Table.from_batches([window]).select(kept).take(pa.array(group))
            _write(job.folder, CARRIED, name, carried)
            yield PreparedFile(part.number, name, row, len(group), int(lengths[group].sum()))
            row += len(group)


def _encoded(processor: ProcessorSpec, window: pa.RecordBatch, cores: int) -> EncodedRows | None:
    if not isinstance(processor, EncodesAhead):
        return None
    rows: EncodedRows = processor.encode(window, cores)
    return rows


def _row_tokens(rows: EncodedRows) -> IntArray:
    """Returns the number of tokens of each row, int64 (rows,); 0 for a row without an input."""
    tokens: IntArray = np.append(rows.inputs.n_tokens, 0)[rows.indices]
    return tokens


def _tokens_table(rows: EncodedRows, group: IntArray, first_row: int) -> pa.Table:
    """Returns the tokens file's rows for some rows of a window."""
    inputs, encoded = rows.inputs, rows.inputs.encoded
    indices = rows.indices[group]
    is_null = indices < 0
    n_tokens = np.where(is_null, NULL_LENGTH, np.append(inputs.n_tokens, 0)[indices])
    counts = np.append(inputs.counts, 0)[indices]
    sequences = inputs.sequences_of(indices[~is_null])
    taken = encoded.values_of(sequences)
    errors = inputs.errors(encoded.errors)
    reasons = [errors.get(int(index)) for index in indices]
    if rows.unreadable:
        pairs = zip(group.tolist(), reasons, strict=True)
        reasons = [rows.unreadable.get(row, reason) for row, reason in pairs]
    columns = {
        ROW: pa.array(np.arange(first_row, first_row + len(group))),
        N_TOKENS: pa.array(n_tokens.astype(np.int32)),
        TRUNCATED: pa.array(np.append(inputs.truncated, False)[indices]),
        SEQUENCES: pa.array(counts.astype(np.int32)),
        ERROR: pa.array(reasons, pa.string()),
        LENGTHS: _lists(encoded.n_tokens[sequences], counts),
    }
    for name, values in encoded.columns.items():
        columns[name] = _lists(values[taken], np.maximum(n_tokens, 0))
    return pa.table(columns)


def _lists(values: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> pa.ListArray:
    """Returns int32 values as one list per row."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.astype(np.int32)))


def _write(folder: str, kind: str, name: str, table: pa.Table) -> None:
    fs, path = file_system(join(folder, kind, name))
    with fs.open(path, "wb") as handle:
        pq.write_table(table, handle, row_group_size=max(table.num_rows, 1))
