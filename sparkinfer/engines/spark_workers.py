"""The workers of a Spark application: how many there are, and calling a function in one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pandas as pd

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.spark_worker import call_in_worker, read_result
from sparkinfer.exceptions import JobError, SparkInferError
from sparkinfer.plan.plan import Workers
from sparkinfer.plan.progress import Progress
from sparkinfer.spark.accelerators import count_accelerators
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.errors import explain
from sparkinfer.spark.hosts import replicas_on_host
from sparkinfer.spark.job_threads import watched_job
from sparkinfer.spark.settings import setting
from sparkinfer.spark.slots import slots_now
from sparkinfer.workers.channel import (
    ProgressAddress,
    ProgressClient,
    ProgressServer,
    WorkerReport,
)
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.steps import LOOK_EVERY_S, Step, current_step

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = TypeVar("T")


class SparkWorkers:
    """What the engines on Spark have in common.

    Args:
        config: which device, and how many replicas.
        spark: the session.
        score_later: whether a Python worker that calls a function is likely to score later.
    """

    def __init__(self, config: ScoringConfig, spark: SparkSession, score_later: bool) -> None:
        self._config = config
        self._spark = spark
        self._score_later = score_later
        self._gpus_each = config.parallel.tensor
        self._found: Workers | None = None

    def workers(self) -> Workers:
        """Returns one replica per GPU, else per CPU slot; see `Engine`."""
        if self._found is None:
            self._found = self._counted()
        return self._found

    def _counted(self) -> Workers:
        found = count_accelerators(
            self._spark,
            self._config.device,
            self._config.num_workers,
            self._gpus_each,
            together=not self._score_later,
        )
        return Workers(
            found.device_type,
            found.count,
            found.cores_per_task,
            self._gpus_each,
            replicas_on_host(self._spark, found.count),
            found.most,
        )

    def now(self) -> Workers:
        """Returns what there is at this moment of a cluster that grows, shrinks and loses nodes.

        As many as were asked for, if a number was, and as many as at first where nothing tells. It
        takes a few milliseconds.
        """
        workers = self.workers()
        count = None if self._config.num_workers else slots_now(self._spark)
        return replace(workers, count=count) if count else workers

    def on_one_worker(self, act: Callable[[WorkerSlot], T], warm_up: Callable[[], None]) -> T:
        """Calls a function in one Python worker and returns its result; see `Engine`.

        The others warm up meanwhile, which takes about as long.
        """
        workers = self.workers()
        scores_later = self._score_later
        steps = _StepsTold()
        server = self._listener(steps.take)
        act = partial(_telling_its_steps, act, server.address if server else None)

        def ask(batches: Iterable[pd.DataFrame]) -> Iterable[pd.DataFrame]:
            for batch in batches:
                if batch["id"].iloc[0] == 0:
                    outcome = call_in_worker(act, workers, scores_later)
                    yield pd.DataFrame({"outcome": [outcome]})
                elif scores_later:
                    warm_up()

        count = workers.count if scores_later else 1
        try:
            one_row_each = self._spark.range(count, numPartitions=count)
            asked = one_row_each.mapInPandas(ask, "outcome binary")
            rows = watched_job(
                self._spark,
                asked.collect,
                "one worker that tries the model out",
                self._config.step_timeout_s,
                lambda: steps.last,
            )
        except SparkInferError:
            raise
        except Exception as error:  # py4j's and Spark's errors have no common root
            raise JobError(f"the gate's worker failed: {explain(error)}") from error
        finally:
            if server is not None:
                server.close()
        result: T = read_result(bytes(rows[0].outcome))
        return result

    def listen(self, progress: Progress) -> ProgressServer | None:
        """Returns a listener that workers can reach, None if there cannot be one."""
        return self._listener(progress.update)

    def _listener(self, on_report: Callable[[WorkerReport], None]) -> ProgressServer | None:
        host = setting(self._spark, "spark.driver.host")
        if host is None and not is_classic(self._spark):
            return None
        try:
            return ProgressServer(on_report, host or "127.0.0.1")
        except Exception:  # a server of Spark Connect is elsewhere: only the display suffers
            return None


class _StepsTold:
    """What a worker said last that it is at."""

    def __init__(self) -> None:
        self.last: Step | None = None

    def take(self, report: WorkerReport) -> None:
        self.last = report.step


def _telling_its_steps(
    act: Callable[[WorkerSlot], T], address: ProgressAddress | None, slot: WorkerSlot
) -> T:
    """Calls a function in a worker, and tells the driver meanwhile what step it is at."""
    client = ProgressClient(address, "gate", 0, slot.device)
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(LOOK_EVERY_S):
            client.tell(current_step())

    threading.Thread(target=tell, name="sparkinfer-steps", daemon=True).start()
    try:
        return act(slot)
    finally:
        ended.set()
        client.close()
