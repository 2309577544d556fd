"""`torch_batch_process` on Spark tasks and on Horovod ranks, killed and paused in between."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import sparkinfer
from sparkinfer.engines.horovod.launchers import has_horovod
from sparkinfer.exceptions import ConfigError, ResumeError
from tests.batch_process_calls import RANKS, STEPS, call, check_whole
from tests.made_up_processor import Journal, Numbers, Quiet, Recorder, handed_in

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark


NEEDS_HOROVOD = pytest.mark.skipif(not has_horovod(), reason="Horovod is not installed here")


@pytest.mark.parametrize(
    "engine", ["spark", pytest.param("horovod", marks=[NEEDS_HOROVOD, pytest.mark.slow])]
)
def test_ranks_start_again_and_the_call_goes_on_after_a_kill_of_the_driver_and_after_a_pause(
    tmp_path: Path, engine: str
) -> None:
    """A rank is killed before the first checkpoint and the driver after it, in the same call."""
    kills = {"batch:1:1": "kill", "batch:2:2": "kill driver"}
    killed = call(tmp_path, kills, timeout_s=240, engine=engine)
    assert killed.returncode == -9
    assert [place for place in kills if Journal(tmp_path / "journal").once(place)] == []
    paused = call(
        tmp_path,
        {"batch:1:2": "stop driver"},
        timeout_s=240,
        engine=engine,
        checkpoint_interval=100,
    )
    assert paused.returncode == 1, paused.stderr
    assert "run the same call to resume" in paused.stderr
    steps = sparkinfer.read_batch_run(str(tmp_path / "out")).steps
    assert 0 < min(steps) < STEPS
    before = [len(Journal(tmp_path / "journal").batches(rank)) for rank in range(RANKS)]
    done = call(tmp_path, {}, timeout_s=240, engine=engine)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path)
    after = [Journal(tmp_path / "journal").batches(rank) for rank in range(RANKS)]
    for rank in range(RANKS):
        resumed = [step for step, _ in after[rank][before[rank] :]]
        assert resumed == list(range(steps[rank], STEPS))


@pytest.fixture
def frame(spark: SparkSession) -> DataFrame:
    rows = [
        (row, f"text {row}", None if row == 5 else float(row), [row, row + 1]) for row in range(23)
    ]
    columns = "id long, text string, score double, pair array<long>"
    return spark.createDataFrame(rows, columns).repartition(3)


class Columns(sparkinfer.TorchBatchProcessor):
    def __init__(self, context: sparkinfer.TorchBatchProcessorContext) -> None:
        self.context = context

    def process_batch(self, batch: Any, batch_idx: int) -> None:
        assert isinstance(batch["id"], torch.Tensor)
        for at, row in enumerate(batch["id"].tolist()):
            assert batch["text"][at] == f"text {row}"
            assert batch["score"][at] == (None if row == 5 else row)
            assert batch["pair"][at] == [row, row + 1]
        rows = "\n".join(map(str, batch["id"].tolist()))
        with self.context.upload_path() as folder:
            (folder / f"rows-{batch_idx}.txt").write_text(rows)


@pytest.mark.parametrize("engine", ["local", "spark"])
def test_a_dataframe_comes_as_columns(frame: DataFrame, tmp_path: Path, engine: str) -> None:
    options = {"batch_size": 4, "num_workers": 2, "output": str(tmp_path / "out")}
    run = sparkinfer.torch_batch_process(Columns, frame, engine=engine, **options)
    assert run.steps == (3, 3)
    assert handed_in(run.output) == list(range(23))
    assert sparkinfer.torch_batch_process(Columns, frame, engine=engine, **options) == run
    with pytest.raises(ResumeError, match="dataset length 23, this call has 22"):
        sparkinfer.torch_batch_process(Columns, frame.where("id < 22"), engine=engine, **options)


def test_ranks_that_could_not_run_together_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_workers=3: the executors run 2 tasks at a time"):
        sparkinfer.torch_batch_process(
            Quiet, Numbers(3), engine="spark", spark=spark, num_workers=3, output=str(tmp_path)
        )


@pytest.mark.parametrize("engine", ["spark", pytest.param("horovod", marks=NEEDS_HOROVOD)])
def test_as_many_ranks_as_slots_by_default(
    spark: SparkSession, tmp_path: Path, engine: str
) -> None:
    hparams = {"journal": str(tmp_path / "journal")}
    run = sparkinfer.torch_batch_process(
        Recorder, Numbers(5), engine=engine, hparams=hparams, output=str(tmp_path / "out")
    )
    assert run.steps == (3, 3)
    assert handed_in(run.output) == list(range(5))
