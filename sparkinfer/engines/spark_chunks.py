"""Chunks scored by Spark tasks in a scalar-iterator Pandas UDF, each in as many shares as tasks.

What goes through the UDF is the numbers of the rows. The process that has the model reads the rows
of the numbers that it is given by Arrow, scores them and writes them with what is carried beside:
carried columns never leave it. A task has no other Python process. Spark takes whichever is idle,
so one that has a model might be taken to read, and the model loaded in another.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pyspark.sql.pandas.functions import pandas_udf

from sparkinfer.engines.spark_worker import WorkerJob, write_rows
from sparkinfer.exceptions import JobError, RowConservationError
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkTask, ScoredChunk
from sparkinfer.rows.reading import Piece, rows_between
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.spark.errors import explain
from sparkinfer.storage import join, make_folder
from sparkinfer.workers.channel import ProgressAddress
from sparkinfer.workers.suspects import Attempt

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class WrittenShare:
    """Rows of a chunk that one task has written.

    Attributes:
        rows: their numbers in the chunk.
        file: that holds them.
    """

    rows: range
    file: WrittenFile


class SparkChunks:
    """Scores chunks of one plan; its methods run in threads of `JobThreads`.

    Args:
        spark: the session.
        plan: how rows are scored.
        progress: where workers report; None: nowhere.
        workers: returns those that there are at the moment.
    """

    def __init__(
        self,
        spark: SparkSession,
        plan: Plan,
        progress: ProgressAddress | None,
        workers: Callable[[], Workers],
    ) -> None:
        self._spark = spark
        self._plan = plan
        self._progress = progress
        self._workers = workers

    def score(self, task: ChunkTask, attempt: Attempt) -> ScoredChunk:
        """Returns a chunk once its tasks have written its files.

        Spark tries a task several times, except with `local[n]`, where it tries it once; what a
        try left that is not the last is in no file that is returned. A chunk over which a worker
        has died is one task, so that suspects run one at a time.

        Raises:
            JobError: a task failed for good; `is_death` tells whether its worker died.
            RowConservationError: the tasks did not write each row once.
        """
        started = time.monotonic()
        chunk = task.chunk
        if chunk.rows:
            parts = 1 if attempt.has_predecessor else self.spread(chunk.rows)
            job = WorkerJob(
                self._plan, self._progress, f"chunk {chunk.number} {attempt.launch}", attempt
            )
            files = files_in_order(self._write(task, job, attempt.launch, parts), chunk.rows)
        else:  # an output without rows still has columns
            make_folder(task.staging)
            empty = ScoredWriter(task.staging, self._plan.columns, self._plan.measure)
            files = (empty.write_tables("empty.parquet", []),)
        return ScoredChunk(chunk, task.staging, files, time.monotonic() - started)

    def spread(self, rows: int) -> int:
        """Returns the number of Spark tasks in which this many rows are scored at the moment."""
        return self._workers().spread(rows)

    def _write(
        self, task: ChunkTask, job: WorkerJob, folder: str, parts: int
    ) -> list[WrittenShare]:
        try:
            numbers = self._spark.range(0, task.chunk.rows, 1, parts)
            found = with_files(numbers, task, job, folder).where("file is not null").collect()
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(explain(error)) from error
        # Pickled by our own workers, in this job.
        return [pickle.loads(bytes(row.file)) for row in found]


def with_files(numbers: DataFrame, task: ChunkTask, job: WorkerJob, folder: str) -> DataFrame:
    """Returns the column `file`: a pickled `WrittenShare` beside the last row of each partition.

    Args:
        numbers: of a chunk's rows, each partition a range.
        task: the chunk.
        job: how its rows are scored.
        folder: for their files, below the chunk's staging folder.
    """
    pieces, staging = task.chunk.pieces, task.staging

    def score(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        rows = consecutive(batch.to_numpy() for batch in batches)
        if not rows:
            return
        share = rows_between(pieces, rows.start, rows.stop)
        outcomes: list[bytes | None] = [None] * len(rows)
        if share:  # gathered rows are shared out by whole pieces
            outcomes[-1] = pickle.dumps(write_share(job, share, staging, folder))
        yield pd.Series(outcomes, dtype=object)

    # Spark evaluates what it takes for deterministic again for the condition on its result.
    udf: Any = pandas_udf(score, returnType="binary").asNondeterministic()  # type: ignore[call-overload]
    return numbers.select(udf("id").alias("file"))


def write_share(job: WorkerJob, share: Sequence[Piece], staging: str, folder: str) -> WrittenShare:
    """Writes what a share is scored to, and returns it once its file is whole."""
    start = share[0].place
    rows = range(start, start + sum(piece.rows for piece in share))
    file = write_rows(job, share, join(staging, folder))
    if file.tally.read != len(rows):
        raise RowConservationError(
            f"{file.tally.read} rows were worked on, expected rows {rows.start} to "
            f"{rows.stop - 1} of the chunk; run again"
        )
    return WrittenShare(rows, replace(file, name=f"{folder}/{file.name}"))


def consecutive(numbers: Iterable[np.ndarray[Any, Any]]) -> range:
    """Returns the numbers of a partition's rows as a range; it is empty if there are none.

    Raises:
        RowConservationError: they are not one.
    """
    found = np.concatenate([np.zeros(0, np.int64), *numbers])
    if not len(found):
        return range(0)
    rows = range(int(found[0]), int(found[0]) + len(found))
    if (np.diff(found) != 1).any():
        raise RowConservationError(
            f"Spark gave a task {len(rows)} rows from row {rows.start} on that do not follow one "
            "another; none of them was scored. Run again"
        )
    return rows


def files_in_order(shares: Iterable[WrittenShare], rows: int) -> tuple[WrittenFile, ...]:
    """Returns the files of a chunk in the order of its rows.

    Args:
        shares: in any order.
        rows: of the chunk.

    Raises:
        RowConservationError: a row is in none of them, or in two.
    """
    files, written = [], 0
    for share in sorted(shares, key=lambda one: one.rows.start):
        if share.rows.start != written:
            break
        files.append(share.file)
        written = share.rows.stop
    else:
        if written == rows:
            return tuple(files)
    raise RowConservationError(
        f"of {rows} rows of a chunk, tasks wrote {written} and then did not continue there; none "
        "of it was published. Run again"
    )
