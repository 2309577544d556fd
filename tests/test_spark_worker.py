import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sparkinfer.config import ScoringConfig
from sparkinfer.engines import spark_worker
from sparkinfer.engines.spark_worker import WorkerJob
from sparkinfer.models.acceleration import Acceleration
from sparkinfer.models.sources import ModelSource


class Model:
    """Stands for a loaded one; refers to itself, so that only the collector frees it."""

    device = "cpu"

    def __init__(self) -> None:
        self.myself = self


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerJob]:
    """A job whose model is quickly loaded into an empty process."""
    spark_worker._drop_cached_model()
    monkeypatch.setattr(spark_worker, "load_model", lambda *_: Model())
    yield WorkerJob(
        ScoringConfig(model="m", input_col="text"),
        ModelSource("folder", "m", None, fingerprint="one", location="/m"),
        kind="cpu",
        cores=1,
        accepted=Acceleration("none", "float32"),
    )
    spark_worker._drop_cached_model()


def load(job: WorkerJob) -> weakref.ref[Any]:
    return weakref.ref(spark_worker._cached_model(job, "cpu"))


def test_a_model_is_kept_until_another_takes_its_place(job: WorkerJob) -> None:
    first = load(job)
    assert load(job)() is first()
    second = load(replace(job, source=replace(job.source, fingerprint="two")))
    assert first() is None
    assert second() is not None


def test_the_collector_leaves_a_kept_model_out(job: WorkerJob) -> None:
    assert gc.get_freeze_count() == 0
    load(job)
    assert gc.get_freeze_count() > 0
    spark_worker._drop_cached_model()
    assert gc.get_freeze_count() == 0
