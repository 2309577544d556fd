"""What runs inside a rank: reads its share of the row groups, scores and writes them."""

from __future__ import annotations

import itertools
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa

from sparkinfer.engines.deaths import Deaths
from sparkinfer.engines.horovod.control import (
    DONE,
    SCORING,
    ControlFolderError,
    RankResult,
    RunAbortedError,
)
from sparkinfer.engines.horovod.placement import Placement
from sparkinfer.engines.horovod.rank_beat import RankBeat
from sparkinfer.engines.horovod.readers import READERS, read_carried, read_row_groups
from sparkinfer.engines.horovod.shares import RankShare, read_shares
from sparkinfer.exceptions import RowConservationError
from sparkinfer.logs import get_logger
from sparkinfer.models.encoded import EncodedWindow
from sparkinfer.plan.plan import Plan
from sparkinfer.rows.processor import encodes_ahead
from sparkinfer.rows.scoring_loop import ScoringLoop, Watch
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.workers import resident
from sparkinfer.workers.channel import ProgressAddress, ProgressClient
from sparkinfer.workers.devices import worker_device
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.threads import limit_threads
from sparkinfer.workers.watchdog import StallReport, end_process

logger = get_logger(__name__)


@dataclass(frozen=True)
class RankJob:
    """All that a rank needs; the same for all ranks, and small however many chunks there are.

    Attributes:
        plan: how rows are scored.
        progress: where to report; None: nowhere.
        prepared: folder of the prepared files.
        shares: folder of the files that say what each rank scores; they come as rows are prepared.
        world_size: ranks that share each chunk.
        reader: name of the reader.
        control: folder of the launch's `RankBeat`s.
        launch: names the launch.
    """

    plan: Plan
    progress: ProgressAddress | None
    prepared: str
    shares: str
    world_size: int
    reader: str
    control: str
    launch: str

    def run(self, placement: Placement) -> None:
        """Scores one rank's share; see `run_rank`."""
        run_rank(self, placement)


def run_rank(job: RankJob, placement: Placement) -> None:
    """Scores this rank's share of every chunk; reports the outcome through the control folder.

    It returns normally even after a failure: launchers report failures poorly, and the driver knows
    more. If the processor hangs, the process is ended.

    Raises:
        ControlFolderError: the outcome cannot be reported.
    """
    warnings.simplefilter("ignore")  # other libraries' notes to their callers
    try:
        with RankBeat(job.control, placement.rank) as beat:
            _score_shares(job, placement, beat)
            beat.enter(DONE)
    except RunAbortedError as error:
        logger.warning("rank %d ends: %s", placement.rank, error)
    except ControlFolderError:
        raise
    except Exception:
        logger.exception("rank %d failed", placement.rank)
    finally:
        resident.release()


def _score_shares(job: RankJob, placement: Placement, beat: RankBeat) -> None:
    if placement.world_size != job.world_size:
        raise RowConservationError(
            f"{placement.world_size} ranks were started, expected {job.world_size}: rows would be "
            "missed or duplicated; check the launcher"
        )
    shares = read_shares(job.shares, placement.rank, beat.pause)
    first = next(shares, None)
    if first is None:
        return  # more ranks than row groups: no need to load the model
    workers = job.plan.workers
    limit_threads(workers.cores)
    with worker_device(workers.device_type, placement.gpu_address, placement.local_rank) as device:
        _score_on(device, job, placement, beat, itertools.chain([first], shares))


def _score_on(
    device: str, job: RankJob, placement: Placement, beat: RankBeat, shares: Iterable[RankShare]
) -> None:
    slot = WorkerSlot(device, job.plan.workers.cores)
    reporter = _Reporter(job.progress, placement.rank, slot, beat)

    def end_rank(stall: StallReport) -> None:
        logger.error("rank %d ends: %s", placement.rank, stall.line)
        end_process(lambda: beat.fail(stall.line, stall.stacks))

    watch = Watch(job.plan.stall_timeout_s, end_rank, job.plan.step_timeout_s)
    with ScoringLoop(job.plan.processor, slot, reporter, watch) as loop:
        beat.check()
        beat.enter(SCORING)
        deaths = Deaths(job.plan.notes)
        for share in shares:
            beat.begin(share.chunk)
            attempt = deaths.attempt(share.chunk, job.launch, placement.rank)
            with loop.at(f"chunk {share.chunk}", attempt):
                result = _score_share(job, share, loop, placement.rank)
            beat.add(result)


def _score_share(job: RankJob, share: RankShare, loop: ScoringLoop, rank: int) -> RankResult:
    """Writes this rank's rows of a chunk to one file, as they are scored."""
    started = time.perf_counter()
    file = _write(job, share, loop, f"rank-{rank:05d}-{uuid.uuid4().hex}.parquet")
    expected = sum(one.rows for one in share.files)
    if file.tally.read != expected:
        raise RowConservationError(
            f"rank {rank} worked on {file.tally.read} rows, expected {expected}"
        )
    seconds = time.perf_counter() - started
    return RankResult(share.chunk, rank, file.name, asdict(file.tally), seconds)


def _write(job: RankJob, share: RankShare, loop: ScoringLoop, name: str) -> WrittenFile:
    writer = ScoredWriter(share.staging, job.plan.columns, job.plan.measure)
    if encodes_ahead(job.plan.processor):
        return loop.write_encoded(name, writer, _encoded_windows(job, share))
    tables = (table for _, table in read_carried(job.prepared, share.files))
    return loop.write(name, writer, (batch for table in tables for batch in table.to_batches()))


def _encoded_windows(job: RankJob, share: RankShare) -> Iterator[tuple[EncodedWindow, pa.Table]]:
    row_groups = read_row_groups(READERS[job.reader], job.prepared, share.files)
    for _, encoded, carried in row_groups:
        yield EncodedWindow(encoded, _read_beside(job, carried)), carried


def _read_beside(job: RankJob, carried: pa.Table) -> pa.RecordBatch:
    """Returns the columns of a row group that the processor reads beside what is encoded."""
    spec = job.plan.processor
    names = list(spec.read_beside) if encodes_ahead(spec) else []
    columns = [carried.column(name).combine_chunks() for name in names]
    return pa.RecordBatch.from_arrays(columns, names=names)


class _Reporter:
    """Reports progress to the driver, and checks for an abort between batches."""

    def __init__(
        self, address: ProgressAddress | None, rank: int, slot: WorkerSlot, beat: RankBeat
    ) -> None:
        self._client = ProgressClient(address, f"rank {rank}", 0, slot.device_name)
        self._beat = beat
        self.runs_on = self._client.runs_on
        self.finish = self._client.finish
        self.close = self._client.close

    def send(self, statistics: ScoringStatistics) -> None:
        self._client.send(statistics)
        self._beat.check()
