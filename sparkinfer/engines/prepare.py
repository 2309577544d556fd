"""The prepare stage: Spark tokenises the input and writes it as Parquet that ranks can share.

Every row gets a key and goes into one row group with rows of like length. A row group is a pair of
files of one name, one row group each: `tokens/NAME` holds the key, the token ids and what is known
of the text, `carried/NAME` the columns that the output keeps, in the same order. Padding is left to
the ranks. Rows are sorted within what a task holds at a time, so nothing is shuffled for it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import functions as F

from sparkinfer.batching.planner import IntArray
from sparkinfer.batching.row_groups import cut_row_groups, growing_limits
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import InputError, JobError, RowConservationError
from sparkinfer.models.encoding import EncodedRows, Encoder, load_encoder
from sparkinfer.models.scorer import DEFAULT_BATCH_TOKENS
from sparkinfer.models.sources import ModelSource, stage
from sparkinfer.spark.accelerators import CORES_PER_TASK, GPUS_PER_TASK
from sparkinfer.spark.errors import explain
from sparkinfer.spark.tables import arrow_field, quoted
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

KEYS_PER_PARTITION = 1 << 33
"""Row keys that a partition has for itself, as in Spark's `monotonically_increasing_id`."""


@dataclass(frozen=True)
class PreparedFile:
    """One row group.

    Attributes:
        name: of both its files.
        first_row: key of its first row; the others follow without a gap.
        rows: its rows.
        tokens: their tokens.
    """

    name: str
    first_row: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class PreparedInput:
    """What the prepare stage wrote.

    Attributes:
        folder: holds the folders of the two kinds of files.
        files: the row groups. Other files in the folder are of attempts that failed.
    """

    folder: str
    files: tuple[PreparedFile, ...]

    @property
    def rows(self) -> int:
        """Rows of all row groups."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class PrepareJob:
    """All that a task needs to prepare its rows.

    Attributes:
        config: what to score.
        source: the model's files.
        kind: what the ranks run on, `cpu` or `cuda`.
        cores: that Spark gives to a task.
        carried: columns that the output keeps.
        folder: receives the files.
    """

    config: ScoringConfig
    source: ModelSource
    kind: str
    cores: int
    carried: tuple[str, ...]
    folder: str


def prepare(spark: SparkSession, df: DataFrame, job: PrepareJob) -> PreparedInput:
    """Returns the row groups of a DataFrame, written by one Spark job.

    Raises:
        JobError: a task failed for good.
    """
    for name in (TOKENS, CARRIED):
        make_folder(join(job.folder, name))
    names = list(dict.fromkeys([*job.carried, job.config.input_col]))
    # By plain names: mapInArrow does not find a column whose name holds a backtick or a dot.
    columns = [F.col(quoted(name)).alias(f"c{place}") for place, name in enumerate(names)]

    def write(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        named = (pa.RecordBatch.from_arrays(batch.columns, names=names) for batch in batches)
        written = [asdict(file) for file in prepare_partition(job, named)]
        if written:
            yield pa.RecordBatch.from_pylist(written)

    try:
        written = df.select(*columns).mapInArrow(
            write, "name string, first_row long, rows long, tokens long"
        )
        rows = _without_gpus(spark, written)
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise JobError(f"the prepare stage failed: {explain(error)}") from error
    return PreparedInput(job.folder, tuple(PreparedFile(**row.asDict()) for row in rows))


def check_carried(df: DataFrame, carried: Iterable[str]) -> None:
    """Raises InputError for a column that Arrow, which carries it to the ranks, has no type for."""
    for name in carried:
        kind = df.schema[name].dataType
        try:
            arrow_field(df.schema[name])
        except Exception as error:  # pyspark's own, of changing classes
            raise InputError(
                f"column {name!r} has type {kind.simpleString()}, which the horovod engine cannot "
                "carry; leave it out with --carry-cols, cast it, or use --engine pandas_udf"
            ) from error


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


def prepare_partition(job: PrepareJob, batches: Iterable[pa.RecordBatch]) -> Iterator[PreparedFile]:
    """Yields the row groups of a partition, each once its files are written.

    Raises:
        RowConservationError: they do not hold as many rows as were read.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    partition = context.partitionId() if context else 0
    first = row = partition * KEYS_PER_PARTITION
    rows_read = 0
    budget = job.config.batching.max_batch_tokens or DEFAULT_BATCH_TOKENS[job.kind]
    limits = growing_limits(budget, budget * BATCHES_IN_ROW_GROUP)
    batching = job.config.batching

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal rows_read
        for batch in batches:
            rows_read += batch.num_rows
            yield batch

    for table in _cut_tables(counted(), batching.window_rows, batching.window_bytes):
        texts = table.column(job.config.input_col).to_pylist()
        rows = _cached_encoder(job).encode_rows(texts)
        lengths = np.append(rows.encoded.n_tokens, 0)[rows.places]
        for group in cut_row_groups(lengths, limits, max_rows=batching.window_rows):
            name = f"part-{partition:05d}-{uuid.uuid4()}.parquet"
            _write(job.folder, TOKENS, name, _tokens_table(rows, group, row))
            carried = table.select(list(job.carried)).take(pa.array(group))
            _write(job.folder, CARRIED, name, carried)
            yield PreparedFile(name, row, len(group), int(lengths[group].sum()))
            row += len(group)
    if row - first != rows_read:
        raise RowConservationError(
            f"partition {partition}: {rows_read} rows were read and {row - first} prepared"
        )


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
