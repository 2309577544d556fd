"""Several processes that score the same sample at the same time, as replicas on one host do."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparkinfer.messages import first_line
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import load_way
from sparkinfer.tuning.ceiling import measured_flops
from sparkinfer.tuning.peak import Peak
from sparkinfer.tuning.sample import measured
from sparkinfer.workers.child import end_with_parent, start_child
from sparkinfer.workers.threads import limit_threads

HOME = "sparkinfer.tuning.replicas:serve"


@dataclass(frozen=True)
class Job:
    """What each process is to do; picklable.

    Attributes:
        path: folder with the model's files.
        options: how it is run.
        way: in which it is run.
        max_length: as the gate found it.
        layout: as the gate found it.
        fingerprint: of the files.
        threads: of each process.
        rows: that it scores.
    """

    path: Path
    options: ModelOptions
    way: Acceleration
    max_length: int
    layout: Layout
    fingerprint: str
    threads: int
    rows: pa.RecordBatch


@dataclass(frozen=True)
class Rates:
    """What processes have found together, or one of them.

    Attributes:
        rows_per_s: rows.
        tokens_per_s: tokens, padding excluded.
        flops: the most operations per second that products of matrices reached.
        memory_bytes: that the model and its batches take; None: not known.
    """

    rows_per_s: float
    tokens_per_s: float
    flops: float
    memory_bytes: int | None


class ReplicaError(Exception):
    """A process fails, ends or takes too long; the message says which. The bench catches it."""


def score_at_once(job: Job, processes: int, within_s: float) -> Rates:
    """Returns what so many processes reach together.

    Args:
        job: of each.
        processes: how many.
        within_s: seconds after which it is given up.

    Raises:
        ReplicaError: it does not work.
    """
    deadline = time.monotonic() + within_s
    environment = {"RAYON_NUM_THREADS": str(job.threads)}
    started: list[tuple[subprocess.Popen[bytes], Connection]] = []
    try:
        for _ in range(processes):
            started.append(start_child(HOME, environment, in_session=True))
            started[-1][1].send_bytes(pickle.dumps(job))
        for one in started:
            _answer(one, deadline)  # the last to be ready lets all of them begin
        for _, connection in started:
            connection.send_bytes(b"")
        return _together([_answer(one, deadline) for one in started])
    except OSError as error:
        raise ReplicaError(f"a process has ended ({error})") from None
    finally:
        for process, connection in started:
            connection.close()
            process.kill()
            process.wait()


def _answer(one: tuple[subprocess.Popen[bytes], Connection], deadline: float) -> Any:
    """Returns what a process has sent."""
    process, connection = one
    if not connection.poll(max(0.0, deadline - time.monotonic())):
        raise ReplicaError("the processes took longer than there was time for")
    try:
        answer = pickle.loads(connection.recv_bytes())  # of a process of our own
    except (EOFError, OSError):
        code = process.wait()
        raise ReplicaError(
            f"a process has ended ({f'signal {-code}' if code < 0 else f'exit code {code}'}), for "
            "lack of memory if nothing else is said above"
        ) from None
    if isinstance(answer, ReplicaError):
        raise answer
    return answer


def _together(each: list[Rates]) -> Rates:
    memory = [one.memory_bytes for one in each if one.memory_bytes is not None]
    return Rates(
        sum(one.rows_per_s for one in each),
        sum(one.tokens_per_s for one in each),
        sum(one.flops for one in each),
        sum(memory) if len(memory) == len(each) else None,
    )


def serve(descriptor: int) -> None:
    """Loads the model for whoever is at the other end, says so, and scores when asked to."""
    end_with_parent(descriptor)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    warnings.simplefilter("ignore")  # other libraries' notes to their callers
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what they print
    connection = Connection(descriptor)
    job: Job = pickle.loads(connection.recv_bytes())  # of the process that started this one
    try:
        answer: Any = _scored(job, connection)
    except Exception as error:  # a backend may raise anything
        answer = ReplicaError(f"{type(error).__name__}: {first_line(error)}")
    with suppress(OSError):
        connection.send_bytes(pickle.dumps(answer))
        connection.poll(None)  # until the other end is closed


def _scored(job: Job, connection: Connection) -> Rates:
    limit_threads(job.threads)
    peak = Peak("cpu")
    found = (job.max_length, job.layout)
    checkpoint = Checkpoint(job.path, job.options, "cpu", *found, fingerprint=job.fingerprint)
    model = load_way(checkpoint, job.way)
    peak.settle()
    connection.send_bytes(pickle.dumps(None))
    connection.recv_bytes()
    timed = measured(model, job.options, job.rows)
    memory, dtype = peak.grown(), job.way.dtype
    flops = max(measured_flops("cpu", dtype) for _ in range(2))
    return Rates(timed.rows_per_s, timed.tokens_per_s, flops, memory)
