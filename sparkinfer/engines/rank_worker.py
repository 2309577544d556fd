"""What runs inside a rank: it reads its share of the row groups, scores and writes them."""

from __future__ import annotations

import logging
import socket
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from sparkinfer.batching.row_groups import deal_out
from sparkinfer.engines.prepare import PreparedInput
from sparkinfer.engines.readers import READERS, read_row_groups
from sparkinfer.engines.spark_worker import WorkerJob, limit_threads, load_model
from sparkinfer.engines.supervision import (
    DONE,
    SCORING,
    ControlFolderError,
    RankBeat,
    RankResult,
    RunAbortedError,
)
from sparkinfer.engines.writing import CarriedRows, write_tables
from sparkinfer.exceptions import RowConservationError
from sparkinfer.jobs.progress import ProgressClient
from sparkinfer.models.acceleration import LoadedModel
from sparkinfer.models.encoding import EncodedRows
from sparkinfer.models.scorer import Scorer
from sparkinfer.models.statistics import ScoringStatistics
from sparkinfer.spark.accelerators import rank_device
from sparkinfer.storage import join

logger = logging.getLogger(__name__)


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
class Piece:
    """A unit of work whose rows are prepared.

    Attributes:
        unit_id: of the unit.
        staging: receives the scored files.
        prepared: the row groups.
    """

    unit_id: str
    staging: str
    prepared: PreparedInput


@dataclass(frozen=True)
class RankJob:
    """All that a rank needs; the same for all ranks.

    Attributes:
        worker: the model and how it is run.
        pieces: what is scored, one after the other.
        schema: of the scored files.
        world_size: ranks that share each piece.
        reader: name of the reader.
        control: folder of the run's `RankBeat`s.
    """

    worker: WorkerJob
    pieces: tuple[Piece, ...]
    schema: pa.Schema
    world_size: int
    reader: str
    control: str


def run_rank(job: RankJob, placement: Placement) -> None:
    """Scores this rank's share of every piece; what happened is told through the control folder.

    It returns also after a failure: launchers report one poorly, and the driver knows more.

    Raises:
        ControlFolderError: nothing can be told.
    """
    warnings.simplefilter("ignore")  # other libraries' notes to their callers
    try:
        with RankBeat(job.control, placement.rank) as beat:
            _score_pieces(job, placement, beat)
            beat.enter(DONE)
    except RunAbortedError as error:
        logger.warning("rank %d ends: %s", placement.rank, error)
    except ControlFolderError:
        raise
    except Exception:
        logger.exception("rank %d failed", placement.rank)


def _score_pieces(job: RankJob, placement: Placement, beat: RankBeat) -> None:
    if placement.world_size != job.world_size:
        raise RowConservationError(
            f"{placement.world_size} ranks were started, expected {job.world_size}: rows would be "
            "left out or doubled; check the launcher"
        )
    shares = [
        deal_out([file.tokens for file in piece.prepared.files], job.world_size)[placement.rank]
        for piece in job.pieces
    ]
    if not any(shares):
        return  # more ranks than row groups: no need to load the model
    started = time.perf_counter()
    limit_threads(job.worker.cores)
    device = rank_device(job.worker.kind, placement.gpu_address, placement.local_rank)
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
    try:
        for piece, share in zip(job.pieces, shares, strict=True):
            if share:
                beat.add(_score_piece(job, piece, share, scorer, model, placement.rank))
        client.send(scorer.statistics)
    finally:
        client.close()


def _score_piece(
    job: RankJob, piece: Piece, share: list[int], scorer: Scorer, model: LoadedModel, rank: int
) -> RankResult:
    """Writes this rank's rows of a piece to one file, as they are scored."""
    carried = CarriedRows(job.worker.config.output_prefix)
    files = [piece.prepared.files[index] for index in share]
    row_groups = read_row_groups(
        READERS[job.reader], piece.prepared.folder, files, model.encoder.input_names
    )

    def windows() -> Iterator[EncodedRows]:
        for _, rows, columns in row_groups:
            carried.put(columns)
            yield rows

    name = f"part-{rank:05d}-{uuid.uuid4()}.parquet"
    scored = carried.complete(scorer.score_encoded(windows()))
    rows = write_tables(join(piece.staging, name), job.schema, scored)
    expected = sum(file.rows for file in files)
    if rows != expected:
        raise RowConservationError(f"rank {rank} wrote {rows} rows, expected {expected}")
    return RankResult(piece.unit_id, (name,), rows)
