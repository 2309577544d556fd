"""What ends the wait for a Spark job of the driver ends the job, too."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.doctor.nodes import ask_executors
from sparkinfer.engines.spark_input import SparkInput
from sparkinfer.plan.ports import TableAccess
from sparkinfer.spark import accelerators

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

LOOK_EVERY_S = 0.05


def hang(*_: Any) -> Any:
    import time

    time.sleep(1000)
    return iter(())


@pytest.fixture
def interrupted(spark: SparkSession) -> Iterator[None]:
    """Has Ctrl-C interrupt this test once a Spark job runs."""
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(LOOK_EVERY_S):
            if spark.sparkContext.statusTracker().getActiveJobsIds():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    yield
    over.set()
    thread.join()


def copy(table: TableAccess, folder: Path) -> None:
    table.copy(str(folder / "copy"), 10, ("id",), None)


def look_at(table: TableAccess, folder: Path) -> None:
    table.state(("id",), None)


@pytest.mark.parametrize("act", [copy, look_at])
def test_a_job_that_reads_the_input_ends(
    spark: SparkSession,
    tmp_path: Path,
    act: Callable[[TableAccess, Path], None],
    interrupted: None,
) -> None:
    df = spark.range(1, numPartitions=1).mapInArrow(hang, "id long")
    table = SparkInput(ScoringConfig(model="m", input_col="id"), spark, df).open().table
    assert table is not None
    with pytest.raises(KeyboardInterrupt):
        act(table, tmp_path)
    assert spark.sparkContext.statusTracker().getActiveJobsIds() == []


def ask(spark: SparkSession) -> None:
    ask_executors(spark, 1, hang)


def probe(spark: SparkSession) -> None:
    accelerators.probe_hosts(spark, 1, "cuda")


@pytest.mark.parametrize("act", [ask, probe])
def test_a_job_that_asks_the_executors_ends(
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[SparkSession], None],
    interrupted: None,
) -> None:
    monkeypatch.setattr(accelerators, "_report_gpus", hang)
    with pytest.raises(KeyboardInterrupt):
        act(spark)
    assert spark.sparkContext.statusTracker().getActiveJobsIds() == []
