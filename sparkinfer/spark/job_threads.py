"""Runs several Spark jobs in parallel from one driver, and cancels all of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.logs import get_logger
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.errors import installation_problem
from sparkinfer.workers.steps import Step, wait_for

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

MOST_THREADS = 1024
"""Jobs that run at the same time; each holds a thread here and one in the JVM."""

CANCEL_AGAIN_S = 1.0


class JobThreads:
    """Threads whose Spark jobs belong together; each inherits the caller's Spark properties.

    Args:
        spark: the session.
        group: name of the jobs' group; None: one of their own.

    Attributes:
        group: the jobs' group.
    """

    def __init__(self, spark: SparkSession, group: str | None = None) -> None:
        self._spark = spark
        self.group = group or f"sparkinfer-{uuid.uuid4().hex}"
        self._pool = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="sparkinfer-job")
        self._running: set[Future[Any]] = set()
        self._said_to_wait = False

    def submit(self, act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Runs a function that starts Spark jobs in a thread."""
        future = self._pool.submit(self._inheriting(self._in_group(act)), *args, **kwargs)
        self._running = {one for one in self._running if not one.done()} | {future}
        if len(self._running) > MOST_THREADS and not self._said_to_wait:
            self._said_to_wait = True
            logger.warning(
                "%d jobs are in flight, of which %d run at a time: slots may idle; make chunks "
                "larger (--set chunks.target_rows=...)",
                len(self._running),
                MOST_THREADS,
            )
        return future

    def tasks_done(self) -> Step | None:
        """Returns how many tasks of the jobs are done, None on Spark Connect, which cannot tell."""
        if not is_classic(self._spark):
            return None
        tracker = self._spark.sparkContext.statusTracker()
        jobs = [tracker.getJobInfo(number) for number in tracker.getJobIdsForGroup(self.group)]
        stages = [tracker.getStageInfo(number) for job in jobs if job for number in job.stageIds]
        done = sum(stage.numCompletedTasks for stage in stages if stage)
        return Step(f"{done} of its tasks are done", done)

    def close(self) -> None:
        """Cancels the jobs that are still running and waits for their threads.

        A thread may be about to start a job when the others are cancelled: it is cancelled too.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        while wait(self._running, timeout=0).not_done:
            self._cancel()
            wait(self._running, timeout=CANCEL_AGAIN_S)

    def _cancel(self) -> None:
        if is_classic(self._spark):
            self._spark.sparkContext.cancelJobGroup(self.group)
        else:
            with suppress(Exception):  # a server that is gone: pyspark ends the jobs' threads
                self._spark.interruptTag(self.group)

    def _in_group(self, act: Callable[P, R]) -> Callable[P, R]:
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            if is_classic(self._spark):
                self._spark.sparkContext.setJobGroup(self.group, "sparkinfer", True)
            else:
                self._spark.addTag(self.group)
            return act(*args, **kwargs)

        return run

    def _inheriting(self, act: Callable[P, R]) -> Callable[P, R]:
        """Returns the function with the Spark properties of the calling thread."""
        if not is_classic(self._spark):
            return act
        from pyspark import inheritable_thread_target

        wrapped: Callable[P, R] = inheritable_thread_target(act)
        return wrapped


def in_job_thread(spark: SparkSession, act: Callable[[], R], group: str | None = None) -> R:
    """Returns the result of a function that starts Spark jobs; what ends the wait cancels them."""
    with closing(JobThreads(spark, group)) as threads:
        return threads.submit(act).result()


def watched_job(
    spark: SparkSession,
    act: Callable[[], R],
    what: str,
    timeout_s: float | None = None,
    now: Callable[[], Step | None] | None = None,
    group: str | None = None,
) -> R:
    """Returns the same, and tells meanwhile what is waited for; see `wait_for`.

    Args:
        spark: the session.
        act: starts the jobs.
        what: see `wait_for`.
        timeout_s: see `wait_for`.
        now: see `wait_for`; None: how many tasks are done.
        group: see `JobThreads`.

    Raises:
        EngineUnavailableError: the workers' Python does not run the package.
    """
    try:
        with closing(JobThreads(spark, group)) as threads:
            return wait_for(threads.submit(act), what, timeout_s, now or threads.tasks_done)
    except Exception as error:  # py4j's and Spark's errors have no common root
        if problem := installation_problem(error):
            raise EngineUnavailableError(problem) from error
        raise
