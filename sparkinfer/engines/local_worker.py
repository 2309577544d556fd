"""A replica in a process of its own, without Spark, which calls what its parent sends it."""

from __future__ import annotations

import pickle
import signal
import sys
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from sparkinfer.exceptions import JobError, SparkInferError
from sparkinfer.plan.plan import Plan
from sparkinfer.rows.reading import Piece
from sparkinfer.rows.scoring_loop import ScoringLoop, Watch
from sparkinfer.rows.tally import WrittenFile
from sparkinfer.rows.writing import ScoredWriter
from sparkinfer.signals import ASKS_TO_END
from sparkinfer.workers.channel import ProgressAddress, ProgressClient
from sparkinfer.workers.child import end_with_parent
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.steps import watched_from_beside
from sparkinfer.workers.suspects import Attempt, withdraw_all
from sparkinfer.workers.threads import limit_threads
from sparkinfer.workers.watchdog import StallReport, end_process, stacks

DONE, FAILED, STALLED = "done", "failed", "stalled"
"""Kinds of answers: with a result, with an error, with why the process ends."""

_connection: Connection | None = None


@dataclass(frozen=True)
class Share:
    """Rows of a chunk that one process scores.

    Attributes:
        plan: how they are scored.
        progress: where to report.
        pieces: where they are.
        staging: folder for their file.
        attempt: at them.
    """

    plan: Plan
    progress: ProgressAddress
    pieces: tuple[Piece, ...]
    staging: str
    attempt: Attempt

    def score(self, slot: WorkerSlot) -> WrittenFile:
        """Returns the file to which the rows were written."""
        plan, attempt = self.plan, self.attempt
        limit_threads(slot.cores, uses_torch=not plan.processor.replaces_rows)
        where = f"chunk {int(attempt.chunk)} {attempt.launch} task {attempt.part}"
        reporter = ProgressClient(self.progress, where, 0, slot.device_name)
        watch = Watch(plan.stall_timeout_s, _end, plan.step_timeout_s)
        writer = ScoredWriter(self.staging, plan.columns, plan.measure)
        with ScoringLoop(plan.processor, slot, reporter, watch) as loop, loop.at(where, attempt):
            return loop.write(f"{uuid.uuid4().hex}.parquet", writer, plan.reader.read(self.pieces))


@dataclass(frozen=True)
class Trial:
    """Something to try out in one process.

    Attributes:
        act: is called with its slot.
        timeout_s: seconds without a move after which it is given up; None: never.
    """

    act: Callable[[WorkerSlot], Any]
    timeout_s: float | None

    def run(self, slot: WorkerSlot) -> Any:
        """Returns its result."""

        def give_up(error: JobError) -> None:
            _end(StallReport(error.message, stacks()))

        with watched_from_beside("the model's trial", self.timeout_s, give_up):
            return self.act(slot)


def serve(descriptor: int) -> None:
    """Answers one call after the other.

    Args:
        descriptor: of the connection with the parent.
    """
    global _connection
    for number in ASKS_TO_END:  # the parent decides; what this process starts hears them again
        signal.signal(number, lambda *_: None)
    connection = _connection = Connection(descriptor)
    end_with_parent(descriptor, withdraw_all)
    slot: WorkerSlot = connection.recv()
    limit_threads(slot.cores, uses_torch=False)
    while True:
        connection.send_bytes(_answer(connection.recv_bytes(), slot))


def _answer(call: bytes, slot: WorkerSlot) -> bytes:
    """Returns the kind of an answer and what it carries, pickled."""
    try:
        return pickle.dumps((DONE, cloudpickle.loads(call)(slot)))
    except SparkInferError as error:
        return pickle.dumps((FAILED, error))
    except Exception as error:  # user code may raise anything, and not all of it can be sent
        traceback.print_exc()
        return pickle.dumps((FAILED, JobError(f"{type(error).__name__}: {error}")))


def _end(stall: StallReport) -> None:
    assert _connection is not None
    driver = _connection
    print(stall, file=sys.stderr, flush=True)
    end_process(lambda: driver.send((STALLED, stall.line)))
