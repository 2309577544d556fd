from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sparkinfer.spark import job_threads
from sparkinfer.spark.job_threads import JobThreads, watched_job
from sparkinfer.workers import steps

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def test_jobs_run_at_the_same_time_with_the_callers_properties(spark: SparkSession) -> None:
    context = spark.sparkContext
    context.setLocalProperty("sparkinfer.test", "mine")
    both = threading.Barrier(2, timeout=30)

    def count(rows: int) -> tuple[int, str]:
        both.wait()
        return context.range(rows).count(), context.getLocalProperty("sparkinfer.test")

    jobs = JobThreads(spark)
    try:
        futures = [jobs.submit(count, rows) for rows in (3, 4)]
        assert [future.result() for future in futures] == [(3, "mine"), (4, "mine")]
    finally:
        jobs.close()
        context.setLocalProperty("sparkinfer.test", None)


def test_more_jobs_than_threads_are_told_once(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_threads, "MOST_THREADS", 2)
    go_on = threading.Event()
    jobs = JobThreads(spark)
    try:
        futures = [jobs.submit(go_on.wait, 30) for _ in range(4)]
        go_on.set()
        assert all(future.result() for future in futures)
    finally:
        go_on.set()
        jobs.close()
    assert caplog.text.count("jobs are in flight, of which 2 run at a time") == 1


def test_closing_ends_the_jobs_that_run_and_those_that_wait(
    spark: SparkSession, tmp_path: Path
) -> None:
    context = spark.sparkContext
    started = tmp_path / "started"

    def endless(_: Any) -> Any:
        started.touch()
        while True:
            time.sleep(0.05)
            yield from ()

    jobs = JobThreads(spark)
    running = jobs.submit(lambda: context.range(1, numSlices=1).mapPartitions(endless).count())
    while not started.exists():
        assert not running.done()
        time.sleep(0.02)
    jobs.close()
    assert "cancelled" in str(running.exception())
    assert context.range(5).count() == 5


def test_a_job_that_begins_while_the_others_are_ended_is_ended_too(
    spark: SparkSession, tmp_path: Path
) -> None:
    context = spark.sparkContext
    began = threading.Event()

    def endless(_: Any) -> Any:
        while True:
            time.sleep(0.05)
            yield from ()

    def stubborn() -> int:
        began.set()
        for _ in range(2):
            with contextlib.suppress(Exception):
                context.range(1, numSlices=1).mapPartitions(endless).count()
        return 7

    jobs = JobThreads(spark)
    future = jobs.submit(stubborn)
    assert began.wait(30)
    jobs.close()
    assert future.result(timeout=0) == 7


def test_a_job_that_is_waited_for_tells_how_far_it_is(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(steps, "SAY_EVERY_S", 0.2)
    monkeypatch.setattr(steps, "LOOK_EVERY_S", 0.05)
    told = threading.Event()

    def act() -> int:
        rows = spark.sparkContext.range(3, numSlices=3).count()
        assert told.wait(30)
        return rows

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for three rows (3 of its tasks are done)" in record.getMessage():
                told.set()

    with caplog.at_level(logging.WARNING):
        logging.getLogger(steps.__name__).addHandler(handler := Told())
        try:
            assert watched_job(spark, act, "three rows") == 3
        finally:
            logging.getLogger(steps.__name__).removeHandler(handler)
