"""Clusters whose workers come and go during a run: a real standalone cluster.

What is held back until a worker is there, or gone, is let go by files; no time decides.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from sparkinfer.spark.java import ensure_java
from tests.made_up_holds import FUNCTION, held, let_go, write_held
from tests.standalone_cluster import StandaloneCluster, run_driver

pytestmark = pytest.mark.spark

WAIT_S = 120.0
ROWS = 300
"""Of a chunk: enough for three tasks on CPUs."""


def drive(spark: object, options: dict) -> dict:
    import sparkinfer
    from sparkinfer.spark.slots import slots_now

    result = sparkinfer.run(sparkinfer.ScoringConfig(**options), spark)
    return {"rows": result.rows, "workers": result.workers.count, "slots": slots_now(spark)}


def options_of(folder: Path, stages: list[int]) -> dict[str, Any]:
    """Returns a job whose chunks are in these stages."""
    write_held(folder / "in.parquet", folder / "marks", stages, ROWS)
    return {
        "input": str(folder / "in.parquet"),
        "output": str(folder / "out"),
        "fn": {"function": FUNCTION, "batch_format": "pandas"},
        "chunks": {"target_rows": ROWS},
    }


def wait_until(is_true: Callable[[], bool], run: Future[Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert not run.done(), run.result()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def files_by_chunk(output: Path) -> dict[int, int]:
    """Returns of how many tasks the files of each chunk are."""
    numbers = (re.match(r"part-(\d+)-", file.name) for file in output.glob("*.parquet"))
    return Counter(int(found[1]) for found in numbers if found)


def rows_in(output: Path) -> pa.Table:
    return pads.dataset(output, format="parquet").to_table().sort_by("id")


def test_a_run_uses_the_worker_that_comes_and_outlives_the_one_that_goes(tmp_path: Path) -> None:
    ensure_java()
    marks, output = tmp_path / "marks", tmp_path / "out"
    stages = [0, *[1] * 7, *[2] * 7]
    args = {"options": options_of(tmp_path, stages)}
    (tmp_path / "cluster").mkdir()
    with (
        StandaloneCluster(tmp_path / "cluster", num_workers=1) as cluster,
        ThreadPoolExecutor(1) as pool,
    ):
        run = pool.submit(run_driver, cluster, drive, args, timeout_s=2 * WAIT_S)
        wait_until(lambda: held(marks, 1) == {"worker-0"}, run)
        cluster.add_worker()
        wait_until(lambda: held(marks, 1) == {"worker-0", "worker-1"}, run)
        let_go(marks, 1)
        wait_until(lambda: held(marks, 2) == {"worker-0", "worker-1"}, run)
        cluster.kill_worker(1)
        let_go(marks, 2)
        said = run.result()
    assert said == {"rows": ROWS * len(stages), "workers": 1, "slots": 1}
    assert rows_in(output)["id"].to_pylist() == list(range(ROWS * len(stages)))
    # Of the stage of which two workers hold rows, three chunks were in flight before.
    tasks = files_by_chunk(output)
    assert tasks[0] == 1
    assert [tasks[chunk] for chunk in (5, 6, 7)] == [2, 2, 2]


@pytest.mark.slow
def test_executors_come_for_the_tasks_that_wait(
    standalone_cluster: StandaloneCluster, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    conf = {
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        "spark.dynamicAllocation.minExecutors": "0",
        "spark.dynamicAllocation.maxExecutors": "2",
        "spark.executor.cores": "1",
    }
    args = {"options": options_of(tmp_path, [0, 1, 1])}
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_driver, standalone_cluster, drive, args, conf, timeout_s=2 * WAIT_S)
        wait_until(lambda: held(marks, 1) == {"worker-0", "worker-1"}, run)
        let_go(marks, 1)
        said = run.result()
    assert (said["rows"], said["workers"]) == (3 * ROWS, 1)
    assert files_by_chunk(tmp_path / "out") == {0: 2, 1: 2, 2: 2}
    assert rows_in(tmp_path / "out")["id"].to_pylist() == list(range(3 * ROWS))
