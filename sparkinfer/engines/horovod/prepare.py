"""The prepare stage: Spark tokenises chunks and writes them as Parquet that ranks can share.

Every row gets a key and goes into one row group with rows of like length. A row group is a pair of
files of one name, one row group each: `tokens/NAME` holds the key, the token ids and what is known
of the text, `carried/NAME` the columns that the output keeps, in the same order. Padding is left to
the ranks. Rows are sorted within what a task holds at a time, so nothing is shuffled for it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.batching.planner import IntArray
from sparkinfer.batching.row_groups import cut_row_groups, growing_limits
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError
from sparkinfer.models.scorer import DEFAULT_BATCH_TOKENS
from sparkinfer.models.sources import ModelSource, stage
from sparkinfer.models.tokens import EncodedRows, Encoder, load_encoder
from sparkinfer.plan.chunks import Chunk
from sparkinfer.rows.reading import ChunkReader
from sparkinfer.spark.accelerators import CORES_PER_TASK, GPUS_PER_TASK
from sparkinfer.spark.errors import explain
from sparkinfer.storage import file_system, join, make_folder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TOKENS, CARRIED = "tokens", "carried"
"""Folders of the two files of a row group."""

ROW, N_TOKENS, TRUNCATED, ERROR = "row", "n_tokens", "truncated", "error"
"""Columns of a tokens file beside those of the model's inputs. `n_tokens` is NULL_LENGTH where the
text is null; `error` says why a text has no tokens."""

NULL_LENGTH = -1

BATCHES_IN_ROW_GROUP = 16
"""Full batches that the tokens of a full row group make: many, so that its last, partial batch
costs little."""

LEAST_PART_ROWS = 4096
"""That are worth a task of their own."""

KEYS_PER_PART = 1 << 33
"""Row keys that a task has for itself, as in Spark's `monotonically_increasing_id`."""


@dataclass(frozen=True)
class PreparedFile:
    """One row group.

    Attributes:
        chunk: number of the chunk that its rows are of.
        name: of both its files.
        first_row: key of its first row; the others follow without a gap.
        rows: its rows.
        tokens: their tokens.
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
        config: what to score.
        source: the model's files.
        kind: what the ranks run on, `cpu` or `cuda`.
        cores: that Spark gives to a task.
        carried: columns that the output keeps.
        reader: reads the chunks.
        folder: receives the files, in one folder for each of their two kinds. Files there that are
            not told of are of attempts that failed.
    """

    config: ScoringConfig
    source: ModelSource
    kind: str
    cores: int
    carried: tuple[str, ...]
    reader: ChunkReader
    folder: str


def prepare(
    spark: SparkSession, chunks: Sequence[Chunk], job: PrepareJob
) -> dict[int, list[PreparedFile]]:
    """Returns the row groups of each chunk by its number, written by one Spark job.

    Raises:
        JobError: a task failed for good.
    """
    for name in (TOKENS, CARRIED):
        make_folder(join(job.folder, name))
    parts = _parts(chunks, spark.sparkContext.defaultParallelism)

    def write(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        for batch in batches:
            for place in batch.column(0).to_pylist():
                written = [asdict(file) for file in prepare_part(job, place, parts[place])]
                if written:
                    yield pa.RecordBatch.from_pylist(written)

    try:
        written = spark.range(len(parts), numPartitions=max(1, len(parts))).mapInArrow(
            write, "chunk long, name string, first_row long, rows long, tokens long"
        )
        rows = _without_gpus(spark, written)
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"the prepare stage failed: {explain(error)}") from error
    prepared: dict[int, list[PreparedFile]] = {chunk.number: [] for chunk in chunks}
    for row in rows:
        prepared[row.chunk].append(PreparedFile(**row.asDict()))
    return prepared


def _parts(chunks: Sequence[Chunk], cores: int) -> list[Chunk]:
    """Returns what each task prepares: a chunk, or a part of one where there are few chunks."""
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
    """Returns the rows of a DataFrame whose last stage asks for cores and no GPU.

    With `spark.task.resource.gpu.amount` set, Spark would run only as many tasks as there are
    GPUs, and tokenising needs none. A profile that has task resources only applies to the
    executors that are there (standalone since Spark 3.4, YARN and Kubernetes since 3.5); with
    dynamic allocation it would ask for executors of its own, so there the tasks keep their GPUs.
    """
    gpus = float(spark.conf.get(GPUS_PER_TASK, None) or 0)
    if gpus == 0 or spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return df.collect()
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    cores = int(spark.conf.get(CORES_PER_TASK, None) or 1)
    profile = ResourceProfileBuilder().require(TaskResourceRequests().cpus(cores)).build
    return list(df.rdd.withResources(profile).collect())


def prepare_part(job: PrepareJob, place: int, part: Chunk) -> Iterator[PreparedFile]:
    """Yields the row groups of a chunk or a part of one, each once its files are written.

    Args:
        job: how.
        place: among the parts; decides about the keys of the rows.
        part: where the rows are.
    """
    row = place * KEYS_PER_PART
    batching = job.config.batching
    budget = batching.max_batch_tokens or DEFAULT_BATCH_TOKENS[job.kind]
    limits = growing_limits(budget, budget * BATCHES_IN_ROW_GROUP)
    batches = job.reader.read(part.pieces)
    for table in _cut_tables(batches, batching.window_rows, batching.window_bytes):
        texts = table.column(job.config.input_col).to_pylist()
        rows = _cached_encoder(job).encode_rows(texts)
        lengths = np.append(rows.encoded.n_tokens, 0)[rows.places]
        for group in cut_row_groups(lengths, limits, max_rows=batching.window_rows):
            name = f"part-{part.number:08d}-{uuid.uuid4()}.parquet"
            _write(job.folder, TOKENS, name, _tokens_table(rows, group, row))
            carried = table.select(list(job.carried)).take(pa.array(group))
            _write(job.folder, CARRIED, name, carried)
            yield PreparedFile(part.number, name, row, len(group), int(lengths[group].sum()))
            row += len(group)


def _cut_tables(
    batches: Iterable[pa.RecordBatch], max_rows: int, max_bytes: int
) -> Iterator[pa.Table]:
    """Yields the rows of all batches in tables bounded in rows, and about bounded in bytes."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for whole in batches:
        start = 0
        while start < whole.num_rows:
            batch = whole.slice(start, max_rows - rows)
            start += batch.num_rows
            held.append(batch)
            rows += batch.num_rows
            size += batch.nbytes
            if rows >= max_rows or size >= max_bytes:
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def _tokens_table(rows: EncodedRows, group: IntArray, first_row: int) -> pa.Table:
    """Returns the tokens file's rows for some rows of a window."""
    encoded = rows.encoded
    places = rows.places[group]
    is_null = places < 0
    n_tokens = np.where(is_null, NULL_LENGTH, np.append(encoded.n_tokens, 0)[places])
    texts = places[~is_null]
    taken = encoded.values_of(texts)
    ends = np.concatenate([[0], np.cumsum(np.maximum(n_tokens, 0))]).astype(np.int32)
    reasons = [encoded.errors.get(int(place)) for place in places]
    columns = {
        ROW: pa.array(np.arange(first_row, first_row + len(group))),
        N_TOKENS: pa.array(n_tokens.astype(np.int32)),
        TRUNCATED: pa.array(np.append(encoded.truncated, False)[places]),
        ERROR: pa.array(reasons, pa.string()),
    }
    for name, values in encoded.columns.items():
        columns[name] = pa.ListArray.from_arrays(pa.array(ends), pa.array(values[taken]))
    return pa.table(columns)


def _write(folder: str, kind: str, name: str, table: pa.Table) -> None:
    fs, path = file_system(join(folder, kind, name))
    with fs.open(path, "wb") as handle:
        pq.write_table(table, handle, row_group_size=max(table.num_rows, 1))


_encoders: dict[tuple[object, ...], Encoder] = {}
"""The one tokenizer of this process."""


def _cached_encoder(job: PrepareJob) -> Encoder:
    config = job.config
    key = (job.source.fingerprint, config.max_length)
    if key not in _encoders:
        os.environ.setdefault("RAYON_NUM_THREADS", str(job.cores))
        path = stage(job.source, config.loading)
        trust = config.loading.trust_remote_code
        _encoders.clear()
        _encoders[key] = load_encoder(path, config.max_length, trust_remote_code=trust)
    return _encoders[key]
