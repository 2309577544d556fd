"""Scoring in the process that asks for it: the reference engine, and a way to try out a model."""

from __future__ import annotations

import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from sparkinfer.engines.deaths import Deaths
from sparkinfer.exceptions import JobError
from sparkinfer.plan.phases import LOAD
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.plan.ports import ChunkLedger, ChunkTask, ScoredChunk
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.scoring_loop import ScoringLoop, Watch
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.storage import make_folder
from sparkinfer.workers import resident
from sparkinfer.workers.channel import WorkerReport
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.steps import watched_from_beside
from sparkinfer.workers.watchdog import StallReport, stacks

T = TypeVar("T")

COMMITS_AT_ONCE = 2
"""Chunks that are committed while the next one is scored: on an object store a commit takes a few
round trips."""


class ThisProcess:
    """Scores in this process; see `Engine`.

    Args:
        workers: the one replica.
        step_timeout_s: see `ScoringConfig`.
    """

    def __init__(self, workers: Workers, step_timeout_s: int | None) -> None:
        self._workers = workers
        self._step_timeout_s = step_timeout_s

    def workers(self) -> Workers:
        """Returns the replica."""
        return self._workers

    def on_one_worker(self, act: Callable[[WorkerSlot], T], warm_up: Callable[[], None]) -> T:
        """Calls a function here and returns its result: this process is the only worker.

        A step that hangs is only reported on stderr; see `score`.
        """
        slot = slot_of(self._workers)
        with watched_from_beside("the model's trial", self._step_timeout_s, _tell_hang):
            return act(slot)

    def close(self) -> None:
        """Releases the model that this process kept."""
        resident.release()

    def score(
        self, plan: Plan, tasks: Iterable[ChunkTask], ledger: ChunkLedger, progress: Progress
    ) -> None:
        """Scores one chunk after the other; see `Engine`.

        A processor that hangs is only reported on stderr: nothing would restart this process.
        """
        progress.enter(LOAD)
        slot = slot_of(plan.workers)
        reporter = _Reporter(progress, slot.device_name)
        watch = Watch(plan.stall_timeout_s, _tell_stall, plan.step_timeout_s)
        commits: deque[Future[None]] = deque()
        deaths, launch = Deaths(plan.notes), uuid.uuid4().hex
        with (
            ThreadPoolExecutor(COMMITS_AT_ONCE, thread_name_prefix="sparkinfer-commit") as pool,
            ScoringLoop(plan.processor, slot, reporter, watch) as loop,
        ):
            for task in tasks:
                with loop.at(
                    f"chunk {task.chunk.number}", deaths.attempt(task.chunk.number, launch)
                ):
                    scored = _score_chunk(loop, plan, task)
                commits.append(pool.submit(ledger.commit, scored))
                while len(commits) > COMMITS_AT_ONCE or (commits and commits[0].done()):
                    commits.popleft().result()
            for commit in commits:
                commit.result()


def _score_chunk(loop: ScoringLoop, plan: Plan, task: ChunkTask) -> ScoredChunk:
    started = time.perf_counter()
    make_folder(task.staging)
    writer = ScoredWriter(task.staging, plan.columns, plan.measure)
    name = f"{uuid.uuid4().hex}.parquet"
    file = loop.write(name, writer, plan.reader.read(task.chunk.pieces))
    return ScoredChunk(task.chunk, task.staging, (file,), time.perf_counter() - started)


def slot_of(workers: Workers, index: int = 0) -> WorkerSlot:
    """Returns what one of this machine's replicas has been given."""
    if workers.device_type == "cpu":
        return WorkerSlot("cpu", workers.cores, on_host=workers.on_host)
    first = index * workers.gpus_each
    device, *others = (f"cuda:{first + number}" for number in range(workers.gpus_each))
    return WorkerSlot(device, workers.cores, others=tuple(others), on_host=workers.on_host)


class _Reporter:
    """Updates the progress directly: the worker is in the driver's process."""

    def __init__(self, progress: Progress, device: str) -> None:
        self._progress = progress
        self._device = device
        self._host: Mapping[str, Any] | None = None

    def runs_on(self, host: Mapping[str, Any]) -> None:
        self._host = host

    def send(self, statistics: ScoringStatistics) -> None:
        report = WorkerReport("worker 0", 0, self._device, replace(statistics), host=self._host)
        self._progress.update(report)

    def finish(self, statistics: ScoringStatistics) -> None:
        self.send(statistics)

    def close(self) -> None:
        pass


def _tell_hang(error: JobError) -> None:
    _tell_stall(StallReport(error.message, stacks()))


def _tell_stall(report: StallReport) -> None:
    print(report, file=sys.stderr, flush=True)
