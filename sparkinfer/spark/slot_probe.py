"""Finds out how many tasks a cluster runs at the same time, by running some: for Spark Connect.

Each Python worker holds its first task for a moment, so that the others of an executor come to run
beside it, and lets later ones through. Those that overlap count, executor by executor, since one
may start its workers after another has ended them. It needs nothing of this package in the workers.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.logs import get_logger
from sparkinfer.spark.errors import explain
from sparkinfer.spark.job_threads import watched_job

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

HOLD_S = 1.0
"""Time for which a worker holds its first task: the others of its executor have begun by then."""

HOLD_UNTIL_S = 10.0
"""Time after the job's start from which no task is held: where each has a new process, or the
cluster is busy, holding all of them would take too long."""

TIMEOUT_S = 60
"""Time without an answer after which the cluster is taken to tell nothing."""

TASKS = (16, 16, 128, 1024)
"""Tasks of the probe, job after job: the first starts the workers, which takes each another time;
there are more, where all have overlapped."""

LASTS_S = 600.0
"""Time for which a session's answer is used."""

logger = get_logger(__name__)

_answers: WeakKeyDictionary[SparkSession, tuple[float, dict[str, int]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class TaskSpan:
    """When a task ran.

    Attributes:
        host: its machine.
        executor: process that started its own, on that machine.
        began: seconds of that machine's clock.
        ended: likewise.
    """

    host: str
    executor: int
    began: float
    ended: float


def probe_slots(spark: SparkSession) -> dict[str, int]:
    """Returns how many tasks run at the same time on each host; empty if the cluster does not tell.

    Raises:
        EngineUnavailableError: the workers' Python is another one than this.
    """
    told_at, answer = _answers.get(spark, (0.0, {}))
    if not answer or time.monotonic() - told_at > LASTS_S:
        answer = _answer_of(spark)
        _answers[spark] = time.monotonic(), answer
    return answer


def _answer_of(spark: SparkSession) -> dict[str, int]:
    slots: dict[str, int] = {}
    try:
        for job, tasks in enumerate(TASKS):
            found = overlapping(_spans(spark, tasks))
            slots = max(slots, found, key=lambda one: sum(one.values()))
            if job and sum(slots.values()) < tasks:
                break
    except EngineUnavailableError:
        raise
    except Exception as error:  # Spark's errors have no common root
        logger.warning(
            "the cluster does not say how many tasks it runs at a time (%s); give num_workers if "
            "you know it",
            explain(error),
        )
    return slots


def _spans(spark: SparkSession, tasks: int) -> list[TaskSpan]:
    from pyspark.sql import functions as F

    # The time of the server, whose clock is the cluster's.
    begun = F.unix_micros(F.current_timestamp()).alias("begun")
    asked = spark.range(0, tasks, 1, tasks).select(begun)
    schema = "host string, executor long, began double, ended double"
    held = asked.mapInArrow(_holder(uuid.uuid4().hex, HOLD_S, HOLD_UNTIL_S), schema)
    what = "tasks that tell how many of them run at the same time"
    return [TaskSpan(*row) for row in watched_job(spark, held.collect, what, TIMEOUT_S)]


def _holder(
    probe: str, hold_s: float, hold_until_s: float
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Returns what a task of the probe does; sent as code, without a module of this package."""

    def hold(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import os
        import socket
        import time

        import pyarrow as pa

        for batch in batches:
            began = time.time()
            is_first = os.environ.get("SPARKINFER_PROBE") != probe
            os.environ["SPARKINFER_PROBE"] = probe
            if is_first and began - batch.column(0)[0].as_py() / 1e6 < hold_until_s:
                time.sleep(hold_s)
            found = [socket.gethostname(), os.getppid(), began, time.time()]
            names = ["host", "executor", "began", "ended"]
            yield pa.RecordBatch.from_pylist([dict(zip(names, found, strict=True))])

    return hold


def overlapping(spans: Sequence[TaskSpan]) -> dict[str, int]:
    """Returns the most tasks that ran at the same time by host, each of its executors' added up."""
    of_executors = defaultdict(list)
    for span in spans:
        of_executors[span.host, span.executor].append(span)
    slots: dict[str, int] = defaultdict(int)
    for (host, _), own in of_executors.items():
        slots[host] += max(sum(one.began <= span.began < one.ended for one in own) for span in own)
    return dict(slots)
