"""Workers and ranks whose forward pass hangs, or whose device breaks; the faults are made here."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.dataset as pads
import pytest

import sparkinfer
from sparkinfer.engines.horovod import engine as horovod
from sparkinfer.engines.horovod.rank import RankJob
from sparkinfer.exceptions import JobError
from sparkinfer.spark.errors import explain
from tests.standalone_cluster import run_driver
from tests.tiny_models import sentences

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

WAIT_S = 20.0


def options(classifier: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(classifier), "input_col": "text", "dtype": "float32", **more}


def write_input(path: Path, rows: int) -> str:
    frame = pd.DataFrame({"id": range(rows), "text": sentences(rows)})
    frame.to_parquet(path)
    return str(path)


def replace_forward(monkeypatch: pytest.MonkeyPatch, forward: Callable[..., Any]) -> None:
    """Has workers call `forward(whole, model, inputs)` for a batch, `whole` being the real one."""
    from sparkinfer.engines import scoring_udf

    original = scoring_udf.score_partition

    def replaced(job: Any, batches: Any) -> Iterator[Any]:
        from sparkinfer.models.running import RunningModel

        whole = RunningModel.run

        def score(self: Any, inputs: Any, *_: Any) -> Any:
            return forward(whole, self, inputs)

        RunningModel.run = score  # type: ignore[method-assign]
        try:
            yield from original(job, batches)
        finally:
            RunningModel.run = whole  # type: ignore[method-assign]

    monkeypatch.setattr(scoring_udf, "score_partition", replaced)


@pytest.fixture
def faulthandler(spark: SparkSession) -> Iterator[None]:
    """The setting that our own sessions have, in one that was started without it."""
    conf = spark._jvm.org.apache.spark.SparkEnv.get().conf()
    name = "spark.python.worker.faulthandler.enabled"
    conf.set(name, "true")
    yield
    conf.set(name, "false")


def test_a_worker_that_hangs_is_one_line(
    spark: SparkSession,
    classifier: Path,
    faulthandler: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spark still has megabytes to send, and has got some rows: where most tasks would hang."""

    def hang(whole: Any, model: Any, inputs: Any) -> Any:
        import time

        model.passes = getattr(model, "passes", 0) + 1
        if model.passes == 3:
            time.sleep(1000)
        return whole(model, inputs)

    replace_forward(monkeypatch, hang)
    texts = [f"{number} film " * 1000 for number in range(2000)]
    df = spark.createDataFrame(pd.DataFrame({"text": texts}))
    batching = {"max_batch_rows": 32, "window_rows": 64}
    scored = sparkinfer.score(df, **options(classifier, stall_timeout_s=2, batching=batching))
    with pytest.raises(Exception, match="exited unexpectedly") as raised:
        scored.write.format("noop").mode("overwrite").save()
    line = explain(raised.value)
    assert line.startswith("no progress for 2 s in the forward pass of 32 rows of up to ")
    assert "tokens (task " in line
    assert "Thread sparkinfer-lookahead:\n" in str(raised.value)
    assert "in hang\n" in str(raised.value)


def drive_a_hang(spark: object, model: str, source: str, output: str, mark: str) -> int:
    import pathlib

    import sparkinfer
    from sparkinfer.engines import spark_chunks

    original = spark_chunks.write_share

    def hanging_once(*args: object) -> object:
        import time

        from sparkinfer.models.running import RunningModel

        whole = RunningModel.run

        def score(self: object, inputs: object, *_: object) -> object:
            try:
                pathlib.Path(mark).touch(exist_ok=False)
            except FileExistsError:
                return whole(self, inputs)
            return time.sleep(1000)

        RunningModel.run = score
        return original(*args)

    spark_chunks.write_share = hanging_once
    config = sparkinfer.ScoringConfig(
        model=model,
        input=source,
        output=output,
        input_col="text",
        dtype="float32",
        stall_timeout_s=2,
    )
    return sparkinfer.run(config, spark).rows


def test_spark_tries_a_task_that_hung_again_in_another_process(
    classifier: Path, tmp_path: Path
) -> None:
    source, output, mark = write_input(tmp_path / "in.parquet", 301), tmp_path / "out", "mark"
    args = {"model": str(classifier), "source": source, "output": str(output)}
    args["mark"] = str(tmp_path / mark)
    assert run_driver("local[2,4]", drive_a_hang, args) == 301
    assert (tmp_path / mark).exists()
    table = pads.dataset(output, format="parquet").to_table()
    assert sorted(table["id"].to_pylist()) == list(range(301))
    assert table["error"].null_count == 301


def test_a_worker_whose_device_broke_ends_before_the_next_task(
    spark: SparkSession,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The CUDA error is a fake: an exception with the text of one, raised on a CPU."""
    breaks = tmp_path / "breaks"
    processes = tmp_path / "processes"
    processes.mkdir()

    def break_device(whole: Any, model: Any, inputs: Any) -> Any:
        (processes / str(os.getpid())).touch()
        if breaks.exists():
            raise RuntimeError("CUDA error: device-side assert triggered")
        return whole(model, inputs)

    def seen() -> list[int]:
        """Returns the processes that scored since the last call."""
        paths = list(processes.iterdir())
        for path in paths:
            path.unlink()
        return [int(path.name) for path in paths]

    replace_forward(monkeypatch, break_device)
    df = spark.createDataFrame(pd.DataFrame({"text": sentences(20)}))
    scored = sparkinfer.score(df, **options(classifier, num_workers=1))
    scored.collect()
    [healthy] = seen()
    breaks.touch()
    with pytest.raises(Exception, match="DeviceError") as raised:
        scored.collect()
    [broken] = seen()
    assert explain(raised.value).startswith("device cpu is broken (CUDA error: device-side assert")
    breaks.unlink()
    scored.collect()
    assert broken not in seen()
    wait_until_gone(broken)
    assert healthy == broken or Path(f"/proc/{healthy}").exists()  # a task alone ends no process


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


HUNG_RANK = """
import pickle, sys, time
from sparkinfer.engines.horovod.rank import Placement, run_rank
from sparkinfer.models.running import RunningModel

RunningModel.run = lambda self, *_: time.sleep(1000)
run_rank(pickle.load(open(sys.argv[1], "rb")), Placement(0, 0, 1))
"""


def test_a_rank_that_hangs_is_named_with_its_chunk(
    spark: SparkSession, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    class OneRank:
        def __init__(self, spark: SparkSession, start_timeout_s: int) -> None:
            pass

        def check(self, kind: str) -> None:
            pass

        def launch(self, job: RankJob, kind: str) -> None:
            (tmp_path / "job").write_bytes(pickle.dumps(job))
            command = [sys.executable, "-c", HUNG_RANK, str(tmp_path / "job")]
            ended.append(subprocess.run(command, capture_output=True, timeout=60).returncode)

        def cancel(self) -> None:
            pass

    monkeypatch.setitem(horovod.LAUNCHERS, "torch", OneRank)
    config = sparkinfer.ScoringConfig(
        input=write_input(tmp_path / "in.parquet", 50),
        output=str(tmp_path / "out"),
        engine="horovod",
        num_workers=1,
        horovod={"launcher": "torch", "reader": "pyarrow"},
        stall_timeout_s=1,
        **options(classifier),
    )
    with pytest.raises(JobError) as raised:
        sparkinfer.run(config, spark)
    assert ended == [1] * 4  # first a batch, then three texts alone: it is the model
    message = raised.value.message
    assert message.startswith("workers die over chunk 0, and it is not the fault of single texts (")
    assert " failed: no progress for 1 s in the forward pass of 1 row of up to " in message
    assert " (chunk 0, process " in message
    failure = raised.value.__cause__
    assert failure is not None
    assert "Thread MainThread:\n" in str(failure.__cause__)
