"""What runs inside a rank: takes its batches, and commits together with the others."""

from __future__ import annotations

import hashlib
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import cloudpickle

from sparkinfer.batch_process.commits import Proposal, folder_of, state_name
from sparkinfer.batch_process.context import TorchBatchProcessorContext
from sparkinfer.batch_process.processor import TorchBatchProcessor
from sparkinfer.batch_process.reducers import Reducers, SavedReducer
from sparkinfer.batch_process.rounds import Decision, RankRounds
from sparkinfer.batch_process.sharding import batch_at, count_batches, next_checkpoint, shard
from sparkinfer.batch_process.uploads import Uploads
from sparkinfer.engines.horovod.control import DONE, SCORING, ControlFolderError, RunAbortedError
from sparkinfer.engines.horovod.placement import Placement
from sparkinfer.engines.horovod.rank_beat import RankBeat
from sparkinfer.exceptions import JobError
from sparkinfer.logs import get_logger
from sparkinfer.storage import join, read_bytes
from sparkinfer.workers.devices import count_cuda_devices, worker_device

logger = get_logger(__name__)

LAUNCHES = "launches"

VALIDATION = "validation"
"""Group in which the reducers' metrics are reported once all steps are done."""


@dataclass(frozen=True)
class BatchPlan:
    """How a dataset is gone through; the same in all ranks.

    Attributes:
        rows: of the dataset.
        batch_size: rows of a batch.
        drop_last: whether a last, short batch is left out.
        ranks: how many share the batches.
        steps: that each rank takes.
        interval: steps from one checkpoint to the next.
    """

    rows: int
    batch_size: int
    drop_last: bool
    ranks: int
    steps: int
    interval: int


@dataclass(frozen=True)
class Work:
    """What the user gave.

    Attributes:
        processor: the class.
        dataset: with `__len__` and `__getitem__`.
        loader: further arguments of torch's `DataLoader`.
        hparams: for the processor.
    """

    processor: type[TorchBatchProcessor]
    dataset: Any
    loader: Mapping[str, Any]
    hparams: Mapping[str, Any]


@dataclass(frozen=True)
class BatchRankJob:
    """All that a rank needs; the same for all ranks of a launch.

    Attributes:
        work: a `Work`, pickled by value where it is not in a module.
        plan: how the dataset is gone through.
        output: the output folder.
        launch: names the launch.
        number: of the last round that is committed.
        steps: that each rank has committed.
        device: `auto`, `cpu` or `cuda`.
        cores: for a rank's threads.
    """

    work: bytes
    plan: BatchPlan
    output: str
    launch: str
    number: int
    steps: Sequence[int]
    device: str
    cores: int

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self.plan.ranks

    @property
    def folder(self) -> str:
        """Where the ranks and the driver communicate."""
        return folder_of(self.output, LAUNCHES, self.launch)

    def run(self, placement: Placement) -> None:
        """Does one rank's part; see `run_rank`."""
        run_rank(self, placement)


def run_rank(job: BatchRankJob, placement: Placement) -> bool:
    """Processes a rank's batches; reports the outcome through the launch's folder.

    Returns:
        Whether it has ended well. Launchers report failures poorly, and the driver knows more.

    Raises:
        ControlFolderError: the outcome cannot be reported.
    """
    try:
        with RankBeat(job.folder, placement.rank) as beat:
            _process(job, placement, beat)
            beat.enter(DONE)
    except RunAbortedError as error:
        logger.warning("rank %d ends: %s", placement.rank, error)
        return False
    except ControlFolderError:
        raise
    except Exception:
        logger.exception("rank %d failed", placement.rank)
        return False
    return True


def _process(job: BatchRankJob, placement: Placement, beat: RankBeat) -> None:
    if placement.world_size != job.world_size:
        raise JobError(
            f"{placement.world_size} ranks were started, expected {job.world_size}: batches would "
            "be missed or doubled; check the launcher"
        )
    _limit_threads(job.cores)
    kind = job.device if job.device != "auto" else ("cuda" if count_cuda_devices() else "cpu")
    with worker_device(kind, placement.gpu_address, placement.local_rank) as device:
        _process_on(device, job, placement.rank, beat)


def _limit_threads(cores: int) -> None:
    import torch

    torch.set_num_threads(cores)


def _process_on(device: str, job: BatchRankJob, rank: int, beat: RankBeat) -> None:
    work: Work = cloudpickle.loads(job.work)  # made by our own driver, for this launch
    rounds = RankRounds(job.folder, rank, job.number, beat.check)
    staging = f"{folder_of('', LAUNCHES, job.launch).lstrip('/')}/rank-{rank:05d}"
    reducers = Reducers(rank, lambda: _read_states(job, rounds.number))
    with closing(Uploads(job.output, staging, f"rank_{rank}")) as uploads:
        context = TorchBatchProcessorContext(
            device, rank, job.world_size, work.hparams, reducers, uploads
        )
        logger.info("rank %d on %s of %s", rank, device, socket.gethostname())
        processor = work.processor(context=context)
        reducers.begin()
        beat.enter(SCORING)
        _Rank(job, rank, work, processor, context, reducers, uploads, rounds, beat).run()


class _Rank:
    """One rank at work."""

    def __init__(
        self,
        job: BatchRankJob,
        rank: int,
        work: Work,
        processor: TorchBatchProcessor,
        context: TorchBatchProcessorContext,
        reducers: Reducers,
        uploads: Uploads,
        rounds: RankRounds,
        beat: RankBeat,
    ) -> None:
        self._plan, self._rank, self._work = job.plan, rank, work
        self._processor, self._context = processor, context
        self._reducers, self._uploads = reducers, uploads
        self._rounds, self._beat = rounds, beat
        self._committed = job.steps
        self._done = job.steps[rank]

    def run(self) -> None:
        """Takes the steps that are not committed, then finishes, unless the run is to pause."""
        batches = self._batches()
        while self._rounds.number == 0 or min(self._committed) < self._plan.steps:
            target = next_checkpoint(self._committed, self._plan.interval, self._plan.steps)
            paused = self._step_until(target, batches)
            self._processor.on_checkpoint_start()
            decision = self._commit(paused=paused)
            self._committed = decision.steps
            if decision.paused:
                return
        self._finish()

    def _step_until(self, target: int, batches: Iterator[Any]) -> bool:
        """Takes steps; returns whether it was asked to pause meanwhile."""
        plan = self._plan
        batch_count = count_batches(plan.rows, plan.batch_size, plan.drop_last)
        while self._done < target:
            if batch_at(self._done, self._rank, plan.ranks) < batch_count:
                self._processor.process_batch(batch=next(batches), batch_idx=self._done)
            self._done += 1
            self._beat.check()
            if self._rounds.pause_asked():
                return True
        return False

    def _finish(self) -> None:
        if self._rank == 0 and len(self._reducers):
            steps = self._plan.steps
            self._context.report_metrics(VALIDATION, steps, self._reducers.reduce())
        self._processor.on_finish()
        self._commit(finished=True)

    def _commit(self, *, paused: bool = False, finished: bool = False) -> Decision:
        number = self._rounds.number + 1
        content = pickle.dumps(self._reducers.states())
        digest = hashlib.sha256(content).hexdigest().encode("ascii")
        self._uploads.add(digest + content, state_name(number, self._rank))
        return self._rounds.commit(
            Proposal(
                self._rank,
                self._done,
                paused,
                finished,
                self._uploads.take(),
                **self._context.take_reports(),
            )
        )

    def _batches(self) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        sampler = _Shard(self._plan, self._rank, self._done)
        return iter(DataLoader(self._work.dataset, batch_sampler=sampler, **self._work.loader))


@dataclass(frozen=True)
class _Shard:
    """A rank's batches from a step on, as torch's `DataLoader` wants them."""

    plan: BatchPlan
    rank: int
    first: int

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan
        batches = shard(
            rank=self.rank,
            ranks=plan.ranks,
            rows=plan.rows,
            batch_size=plan.batch_size,
            steps=range(self.first, plan.steps),
            drop_last=plan.drop_last,
        )
        return map(list, batches)


def _read_states(job: BatchRankJob, number: int) -> list[list[SavedReducer]]:
    """Returns the reducers' states of all ranks at a round, empty before the first.

    Raises:
        JobError: a file is missing or damaged.
    """
    if number == 0:
        return []
    return [_read_state(job.output, state_name(number, rank)) for rank in range(job.world_size)]


def _read_state(output: str, name: str) -> list[SavedReducer]:
    path = join(output, name)
    found = read_bytes(path) or b""
    digest, content = found[:64], found[64:]
    if hashlib.sha256(content).hexdigest().encode("ascii") != digest:
        raise JobError(
            f"{path!r} is missing or damaged: restore it, or name another output for a new run"
        )
    states: list[SavedReducer] = pickle.loads(content)  # of the user's own run, below the output
    return states
