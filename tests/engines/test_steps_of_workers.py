"""Steps before the first row that hang inside a Spark job: they end, with what hung."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.spark_workers import SparkWorkers
from sparkinfer.exceptions import JobError
from sparkinfer.workers.steps import step

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def workers(spark: SparkSession, timeout_s: int) -> SparkWorkers:
    config = ScoringConfig(model="m", input_col="text", device="cpu", step_timeout_s=timeout_s)
    return SparkWorkers(config, spark, score_later=False)


@pytest.fixture(autouse=True)
def imported(spark: SparkSession) -> None:
    """A worker that has imported what it needs, which takes seconds."""
    workers(spark, 600).on_one_worker(lambda slot: None, lambda: None)


def test_a_worker_that_hangs_is_ended_and_its_step_told(
    spark: SparkSession,
) -> None:
    def hang(slot: Any) -> None:
        import time

        with step("loading the model with a made-up backend"):
            time.sleep(1000)

    with pytest.raises(JobError) as raised:
        workers(spark, 4).on_one_worker(hang, lambda: None)
    assert raised.value.message.startswith(
        "nothing has moved for 4 s in one worker that tries the model out (loading the model with "
        "a made-up backend); "
    )
    assert spark.sparkContext.statusTracker().getActiveJobsIds() == []


def test_a_worker_that_goes_from_step_to_step_is_waited_for(spark: SparkSession) -> None:
    def act(slot: Any) -> str:
        import time

        for number in range(4):
            with step(f"step {number}"):
                time.sleep(1.5)
        return slot.device

    assert workers(spark, 4).on_one_worker(act, lambda: None) == "cpu"
