"""What runs inside a Spark task: sets up the process and runs rows through the scoring loop."""

from __future__ import annotations

import itertools
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import SparkInferError
from sparkinfer.plan.plan import Plan, Workers
from sparkinfer.rows.reading import Piece
from sparkinfer.rows.scoring_loop import ScoringLoop, Watch
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.spark.accelerators import task_devices
from sparkinfer.spark.worker_end import end_worker
from sparkinfer.storage import make_folder
from sparkinfer.workers import resident, worker_reuse
from sparkinfer.workers.channel import ProgressAddress, ProgressClient
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.suspects import Attempt
from sparkinfer.workers.threads import limit_threads

resident.on_change(worker_reuse.settle_or_unsettle)


@dataclass(frozen=True)
class WorkerJob:
    """All that a task needs to score its rows; small, since it is sent with every task.

    Attributes:
        plan: how rows are scored.
        progress: where to report; None: nowhere.
        name: put before the task's number in its reports.
        attempt: at a chunk, of which each task has a part; None: nothing is noted.
    """

    plan: Plan
    progress: ProgressAddress | None = None
    name: str = ""
    attempt: Attempt | None = None


def score_partition(job: WorkerJob, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields the scored columns of a partition's rows, in order; loads no model if there are none.

    If the processor hangs, this process is ended, and Spark retries the task in a new one.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return
    with _loop(job) as loop:
        yield from loop.process(itertools.chain([first], iterator))


@contextmanager
def _loop(job: WorkerJob) -> Iterator[ScoringLoop]:
    """Yields the loop of the running task, which is about its rows."""
    from pyspark import TaskContext

    plan = job.plan
    context = TaskContext.get()
    part = context.partitionId() if context else 0
    name = f"{job.name} task {part}".strip()
    task_id = context.taskAttemptId() if context else 0
    number = context.attemptNumber() if context else 0
    attempt = job.attempt.of_task(part, number) if job.attempt else None
    watch = Watch(plan.stall_timeout_s, lambda stall: end_worker(str(stall)), plan.step_timeout_s)
    uses_torch = not plan.processor.replaces_rows
    with task_slot(plan.workers, uses_torch=uses_torch) as slot:
        reporter = ProgressClient(job.progress, name, task_id, slot.device_name)
        with ScoringLoop(plan.processor, slot, reporter, watch) as loop, loop.at(name, attempt):
            yield loop


def write_rows(job: WorkerJob, pieces: Iterable[Piece], folder: str) -> WrittenFile:
    """Reads, scores and writes rows of the input, with what is carried beside them, to one file.

    Args:
        job: how they are scored.
        pieces: where they are.
        folder: for the file.
    """
    plan = job.plan
    with _loop(job) as loop:
        make_folder(folder)
        writer = ScoredWriter(folder, plan.columns, plan.measure)
        return loop.write(f"{uuid.uuid4().hex}.parquet", writer, plan.reader.read(pieces))


@contextmanager
def task_slot(
    workers: Workers, scores_later: bool = True, uses_torch: bool = True
) -> Iterator[WorkerSlot]:
    """Sets up this process for the running task and yields the task's slot."""
    limit_threads(workers.cores, uses_torch)
    with task_devices(workers.device_type, workers.gpus_each) as (device, *others):
        yield WorkerSlot(device, workers.cores, scores_later, tuple(others), workers.on_host)


def call_in_worker(act: Callable[[WorkerSlot], Any], workers: Workers, scores_later: bool) -> bytes:
    """Calls a function in this task and returns its result or its SparkInferError, pickled."""
    try:
        with task_slot(workers, scores_later) as slot:
            return pickle.dumps(act(slot))
    except SparkInferError as error:
        return pickle.dumps(error)


def read_result(outcome: bytes) -> Any:
    """Returns the result of `call_in_worker`, or raises its error."""
    result = pickle.loads(outcome)  # made by our own worker, in this job
    if isinstance(result, SparkInferError):
        raise result
    return result
