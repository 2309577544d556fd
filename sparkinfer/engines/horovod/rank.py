"""What runs inside a rank: it reads its share of the row groups, scores and writes them."""

from __future__ import annotations

import logging
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sparkinfer.batching.row_groups import deal_out
from sparkinfer.engines.horovod.prepare import PreparedFile
from sparkinfer.engines.horovod.readers import READERS, read_row_groups
from sparkinfer.engines.horovod.supervision import (
    DONE,
    SCORING,
    ControlFolderError,
    RankBeat,
    RankResult,
    RunAbortedError,
)
from sparkinfer.engines.spark_worker import WorkerJob, limit_threads, load_model
from sparkinfer.exceptions import RowConservationError
from sparkinfer.models.acceleration import LoadedModel
from sparkinfer.models.scorer import Scorer
from sparkinfer.models.tokens import EncodedRows
from sparkinfer.rows.writing import CarriedRows, write_tables
from sparkinfer.storage import join
from sparkinfer.workers.channel import ProgressClient
from sparkinfer.workers.devices import worker_device
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.watchdog import StallReport, Watchdog, end_process

logger = logging.getLogger(__name__)

PreparedShares = tuple[tuple[PreparedFile, ...], ...]
"""Row groups by the rank that scores them."""


@dataclass(frozen=True)
class Placement:
    """Where a process stands in its world.

    Attributes:
        rank: 0 to world_size - 1.
        local_rank: the rank among the processes of its host.
        world_size: number of processes.
        gpu_address: the GPU that Spark gave it, None where it schedules none.
    """

    rank: int
    local_rank: int
    world_size: int
    gpu_address: str | None = None


@dataclass(frozen=True)
class PreparedChunk:
    """A chunk whose rows are prepared.

    Attributes:
        number: of the chunk.
        staging: receives the scored files.
        row_groups: what was prepared, for each rank its share.
    """

    number: int
    staging: str
    row_groups: PreparedShares


@dataclass(frozen=True)
class RankJob:
    """All that a rank needs; the same for all ranks.

    Attributes:
        worker: the model and how it is run.
        chunks: what is scored, one after the other.
        prepared: folder of the prepared files.
        schema: of the scored files.
        world_size: ranks that share each chunk.
        reader: name of the reader.
        control: folder of the run's `RankBeat`s.
    """

    worker: WorkerJob
    chunks: tuple[PreparedChunk, ...]
    prepared: str
    schema: pa.Schema
    world_size: int
    reader: str
    control: str


def run_rank(job: RankJob, placement: Placement) -> None:
    """Scores this rank's share of every chunk; what happened is told through the control folder.

    It returns also after a failure: launchers report one poorly, and the driver knows more. A
    scorer that hangs ends the process.

    Raises:
        ControlFolderError: nothing can be told.
    """
    warnings.simplefilter("ignore")  # other libraries' notes to their callers
    try:
        with RankBeat(job.control, placement.rank) as beat:
            _score_chunks(job, placement, beat)
            beat.enter(DONE)
    except RunAbortedError as error:
        logger.warning("rank %d ends: %s", placement.rank, error)
    except ControlFolderError:
        raise
    except Exception:
        logger.exception("rank %d failed", placement.rank)


def deal_chunk(files: Sequence[PreparedFile], world_size: int, turn: int) -> PreparedShares:
    """Returns for each rank its row groups of a chunk.

    Args:
        files: the chunk's row groups.
        world_size: number of ranks.
        turn: counts the chunks, so that it is not always the same rank that gets more.
    """
    shares = deal_out([file.tokens for file in files], world_size)
    turned = [shares[(rank + turn) % world_size] for rank in range(world_size)]
    return tuple(tuple(files[index] for index in share) for share in turned)


def _score_chunks(job: RankJob, placement: Placement, beat: RankBeat) -> None:
    if placement.world_size != job.world_size:
        raise RowConservationError(
            f"{placement.world_size} ranks were started, expected {job.world_size}: rows would be "
            "left out or doubled; check the launcher"
        )
    chunks = [chunk for chunk in job.chunks if chunk.row_groups[placement.rank]]
    if not chunks:
        return  # more ranks than row groups: no need to load the model
    started = time.perf_counter()
    limit_threads(job.worker.cores)
    device = worker_device(job.worker.kind, placement.gpu_address, placement.local_rank)
    model = load_model(job.worker, device)
    beat.check()
    beat.enter(SCORING)
    name = f"rank {placement.rank}"
    client = ProgressClient(job.worker.progress, name, 0, f"{device} on {socket.gethostname()}")

    def report(statistics: ScoringStatistics) -> None:
        client.send(statistics)
        beat.check()

    scorer = Scorer(model, job.worker.config.batching, report)
    scorer.statistics.load_s = time.perf_counter() - started

    def end_rank(stall: StallReport) -> None:
        logger.error("rank %d ends: %s", placement.rank, stall.line)
        end_process(lambda: beat.fail(stall.line, stall.stacks))

    watchdog = Watchdog(scorer.activities, job.worker.config.stall_timeout_s, end_rank)
    try:
        with watchdog:
            for chunk in chunks:
                watchdog.where = f"chunk {chunk.number}"
                beat.begin(chunk.number)
                beat.add(_score_chunk(job, chunk, scorer, model, placement.rank))
        client.finish(scorer.statistics)
    finally:
        client.close()


def _score_chunk(
    job: RankJob, chunk: PreparedChunk, scorer: Scorer, model: LoadedModel, rank: int
) -> RankResult:
    """Writes this rank's rows of a chunk to one file, as they are scored."""
    started = time.perf_counter()
    carried = CarriedRows(job.worker.config.output_prefix)
    files = chunk.row_groups[rank]
    row_groups = read_row_groups(
        READERS[job.reader], job.prepared, files, model.encoder.input_names
    )

    def windows() -> Iterator[EncodedRows]:
        for _, rows, columns in row_groups:
            carried.put(columns)
            yield rows

    name = f"rank-{rank:05d}-{uuid.uuid4().hex}.parquet"
    scored = carried.complete(scorer.score_encoded(windows()))
    rows = write_tables(join(chunk.staging, name), job.schema, scored)
    expected = sum(file.rows for file in files)
    if rows != expected:
        raise RowConservationError(f"rank {rank} wrote {rows} rows, expected {expected}")
    return RankResult(chunk.number, rank, name, rows, time.perf_counter() - started)
