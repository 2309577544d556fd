"""What runs inside a Spark task: the model, loaded once per Python worker, and its scorer."""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import SparkInferError
from sparkinfer.jobs.progress import ProgressAddress, ProgressClient
from sparkinfer.models.acceleration import (
    Acceleration,
    LoadedModel,
    Verdict,
    load_accepted,
    release_memory,
    run_gate,
)
from sparkinfer.models.scorer import Scorer
from sparkinfer.models.sources import ModelSource, stage
from sparkinfer.models.watchdog import Watchdog
from sparkinfer.spark import worker_reuse
from sparkinfer.spark.accelerators import release_gpus, task_device
from sparkinfer.spark.worker_end import end_worker


@dataclass(frozen=True)
class WorkerJob:
    """All that a task needs to score its rows; small, for it travels with every task.

    Attributes:
        config: what to score and how.
        source: the model's files.
        kind: `cpu` or `cuda`.
        cores: torch threads of a task.
        accepted: how the model is run; None before the gate has decided.
        labels: of the model; none before the gate has decided.
        progress: where to report, None for nowhere.
        name: put before the task's number where it reports.
    """

    config: ScoringConfig
    source: ModelSource
    kind: str
    cores: int
    accepted: Acceleration | None = None
    labels: tuple[str, ...] = ()
    progress: ProgressAddress | None = None
    name: str = ""


_cache: dict[tuple[object, ...], LoadedModel] = {}
"""The one model of this process. A second one would share the accelerator's memory with it."""


def score_partition(
    job: WorkerJob, batches: Iterable[Sequence[str | None]]
) -> Iterator[pa.RecordBatch]:
    """Yields the scored columns of a partition's rows, in order; loads no model for no rows.

    A scorer that hangs ends this process, and Spark tries the task again in a new one.
    """
    from pyspark import TaskContext

    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return
    started = time.perf_counter()
    device = _set_up_process(job)
    model = _cached_model(job, device)
    context = TaskContext.get()
    name = f"{job.name} task {context.partitionId() if context else 0}".strip()
    client = ProgressClient(
        job.progress,
        worker=name,
        attempt=context.taskAttemptId() if context else 0,
        device=f"{device} on {socket.gethostname()}",
    )
    scorer = Scorer(model, job.config.batching, client.send)
    scorer.statistics.load_s = time.perf_counter() - started
    timeout_s = job.config.stall_timeout_s
    try:
        with Watchdog(scorer.activities, timeout_s, lambda stall: end_worker(str(stall)), name):
            yield from scorer.score(itertools.chain([first], iterator))
        client.finish(scorer.statistics)
    finally:
        client.close()


def gate_outcome(job: WorkerJob, keep_model: bool) -> bytes:
    """Returns the pickled verdict of the gate, or the pickled error that it ended with.

    Args:
        job: what is to be scored, and on what.
        keep_model: whether the model that passed stays loaded: for a process that is likely to
            score a partition next. One that is not must not hold the accelerator's memory.
    """
    try:
        device = _set_up_process(job)
        _drop_cached_model()
        path = stage(job.source, job.config.loading)
        model, verdict = run_gate(path, job.config, device)
    except SparkInferError as error:
        return pickle.dumps(error)
    if keep_model:
        _keep(_cache_key(job, verdict.accepted, device), model)
    else:
        del model
        release_memory(device)
        release_gpus()
    return pickle.dumps(verdict)


def read_outcome(outcome: bytes) -> Verdict:
    """Returns the verdict of `gate_outcome`, or raises its error."""
    result = pickle.loads(outcome)  # made by our own worker, in this job
    if isinstance(result, SparkInferError):
        raise result
    verdict: Verdict = result
    return verdict


def limit_threads(cores: int) -> None:
    """Gives torch and the tokenizer as many threads as the worker has cores."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RAYON_NUM_THREADS", str(cores))
    import torch

    torch.set_num_threads(cores)


def _set_up_process(job: WorkerJob) -> str:
    """Returns the task's device."""
    limit_threads(job.cores)
    return task_device(job.kind)


def load_model(job: WorkerJob, device: str) -> LoadedModel:
    """Returns the job's model on a device, run as the gate has decided."""
    if job.accepted is None:
        raise AssertionError("rows are scored after the gate has decided")
    path = stage(job.source, job.config.loading)
    return load_accepted(path, job.config, device, job.accepted)


def _cached_model(job: WorkerJob, device: str) -> LoadedModel:
    if job.accepted is None:
        raise AssertionError("rows are scored after the gate has decided")
    key = _cache_key(job, job.accepted, device)
    if key not in _cache:
        _drop_cached_model()
        _keep(key, load_model(job, device))
    return _cache[key]


def _keep(key: tuple[object, ...], model: LoadedModel) -> None:
    """Keeps a model for the next tasks."""
    _cache[key] = model
    worker_reuse.settle()


def _drop_cached_model() -> None:
    """Frees the accelerator's memory before the next model is loaded."""
    worker_reuse.unsettle()
    while _cache:
        release_memory(_cache.popitem()[1].device)


def _cache_key(job: WorkerJob, accepted: Acceleration, device: str) -> tuple[object, ...]:
    config = job.config
    return (job.source.fingerprint, accepted, device, config.task, config.max_length)
