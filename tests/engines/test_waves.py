"""Chunks that are prepared while ranks score those before them.

Where nothing else is said, a rank runs in this process and holds none of the session's two slots,
of which the engine leaves it one: the other one prepares.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.engines.horovod import rank, waves
from sparkinfer.engines.horovod.feed import Feed
from sparkinfer.engines.horovod.launchers import has_horovod
from sparkinfer.engines.horovod.prepare_stage import Beside
from sparkinfer.engines.horovod.shares import Shares
from sparkinfer.engines.horovod.waves import cut_waves, spare_slots
from sparkinfer.exceptions import DeviceError, JobError
from sparkinfer.plan.chunks import Chunk
from sparkinfer.rows.reading import Piece
from tests.ranks_in_turn import RanksInTurn
from tests.standalone_cluster import run_driver
from tests.tiny_models import sentences

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

NEEDS_HOROVOD = pytest.mark.skipif(not has_horovod(), reason="horovod is not installed")
WAIT_S = 60.0
ROWS = 40
"""Of each chunk."""


@pytest.mark.parametrize(
    ("rows", "ranks", "least_rows", "expected"),
    [
        ([], 2, 10, []),
        ([0], 2, 10, [[0]]),
        ([9], 2, 10, [[0]]),
        ([30, 30, 30, 30, 30], 2, 10, [[0, 1], [2, 3], [4]]),
        ([5, 5, 5, 5, 5], 2, 10, [[0, 1, 2, 3], [4]]),
        ([0, 0, 50, 0, 50, 50], 2, 10, [[0, 1, 2, 3, 4], [5]]),
    ],
)
def test_a_wave_has_a_chunk_and_enough_rows_for_each_rank(
    rows: Sequence[int], ranks: int, least_rows: int, expected: list[list[int]]
) -> None:
    chunks = [Chunk(n, (Piece("f", 0, 1, count),)) for n, count in enumerate(rows)]
    found = cut_waves(chunks, ranks, least_rows)
    assert [[chunk.number for chunk in wave] for wave in found] == expected


@pytest.mark.parametrize(
    ("tasks", "ranks", "device_type", "spare"),
    [
        (2, 2, "cpu", 0),
        (3, 2, "cpu", 1),
        (18, 16, "cpu", 2),
        (17, 16, "cpu", 0),
        (4, 2, "cuda", 2),
        (3, 2, "cuda", 0),
        (1, 2, "cuda", 0),
    ],
)
def test_slots_that_ranks_leave_count_only_if_they_keep_up(
    tasks: int, ranks: int, device_type: str, spare: int
) -> None:
    assert spare_slots(tasks, ranks, device_type) == spare


@pytest.fixture
def options(
    classifier: Path,
    tmp_path: Path,
    ranks_in_turn: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """Those of a run with a rank in this process and three chunks, each of them a wave."""
    monkeypatch.setattr(waves, "LEAST_RANK_ROWS", {"cpu": 1})
    write_input(tmp_path / "in.parquet", chunks=3)
    return run_options(classifier, tmp_path) | ranks_in_turn | {"num_workers": 1}


def write_input(path: Path, chunks: int) -> None:
    texts = pa.array(sentences(chunks * ROWS), pa.string())
    table = pa.table({"id": range(chunks * ROWS), "text": texts})
    pq.write_table(table, path, row_group_size=ROWS)


def run_options(classifier: Path, folder: Path) -> dict[str, Any]:
    return {
        **{"model": str(classifier), "input": str(folder / "in.parquet"), "input_col": "text"},
        **{"output": str(folder / "out"), "engine": "horovod", "dtype": "float32"},
        **{"acceleration": "none", "chunks": {"target_rows": ROWS}},
    }


def run(options: dict[str, Any], spark: SparkSession) -> sparkinfer.RunResult:
    return sparkinfer.run(sparkinfer.ScoringConfig(**options), spark)


def recorded(output: str | Path) -> set[int]:
    files = (Path(output) / "_sparkinfer" / "chunks").glob("[0-9]*.json")
    return {int(path.name[:8]) for path in files}


def ids(output: str | Path) -> list[int]:
    found = pads.dataset(output, format="parquet").to_table(columns=["id"])
    return sorted(found.column("id").to_pylist())


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not become true")
        time.sleep(0.01)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The chunks of each call of the prepare stage."""
    calls: list[list[int]] = []
    whole = waves.prepare

    def note(spark: Any, chunks: Sequence[Chunk], *more: Any) -> Any:
        calls.append([chunk.number for chunk in chunks])
        return whole(spark, chunks, *more)

    monkeypatch.setattr(waves, "prepare", note)
    return calls


def before_chunk(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Does something before a chunk is prepared."""
    whole = waves.prepare

    def prepare(spark: Any, chunks: Sequence[Chunk], *more: Any) -> Any:
        if number in [chunk.number for chunk in chunks]:
            act()
        return whole(spark, chunks, *more)

    monkeypatch.setattr(waves, "prepare", prepare)


def test_ranks_score_the_first_wave_before_the_next_is_prepared(
    spark: SparkSession,
    options: dict[str, Any],
    prepared: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = options["output"]
    before_chunk(monkeypatch, 1, lambda: wait_until(lambda: recorded(output) == {0}))
    result = run(options, spark)
    assert prepared == [[0], [1], [2]]
    assert ids(output) == list(range(3 * ROWS))
    assert result.statistics.rows == 3 * ROWS
    assert list(result.phases)[-4:] == ["prepare", "start", "score", "publish"]


def test_where_ranks_hold_all_slots_everything_is_prepared_before_them(
    spark: SparkSession, options: dict[str, Any], prepared: list[list[int]]
) -> None:
    run({**options, "num_workers": 2}, spark)
    assert prepared == [[0, 1, 2]]
    assert ids(options["output"]) == list(range(3 * ROWS))


def test_what_slots_that_are_gone_leave_is_prepared_before_another_launch(
    spark: SparkSession,
    options: dict[str, Any],
    prepared: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = iter([1, 0])
    monkeypatch.setattr(waves.Waves, "slots_beside", lambda _: next(slots, 0))
    launches = count_launches(monkeypatch)
    run(options, spark)
    assert (prepared, len(launches)) == ([[0], [1, 2]], 2)
    assert ids(options["output"]) == list(range(3 * ROWS))


def count_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the names of the launches, which come as they are made."""
    launches: list[str] = []
    launch = RanksInTurn.launch

    def count(self: RanksInTurn, job: Any, kind: str) -> None:
        launches.append(job.launch)
        launch(self, job, kind)

    monkeypatch.setattr(RanksInTurn, "launch", count)
    return launches


def test_a_later_wave_that_cannot_be_prepared_ends_the_ranks_and_says_why(
    spark: SparkSession,
    options: dict[str, Any],
    prepared: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise JobError("no space left for chunk 1")

    with monkeypatch.context() as patch:
        before_chunk(patch, 1, fail)
        with pytest.raises(JobError, match="^no space left for chunk 1$"):
            run(options, spark)
    assert recorded(options["output"]) <= {0}
    result = run(options, spark)
    assert result.rows == 3 * ROWS
    assert ids(options["output"]) == list(range(3 * ROWS))


def test_a_rank_that_dies_over_the_second_wave_costs_no_chunk_before(
    spark: SparkSession,
    options: dict[str, Any],
    prepared: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launches = count_launches(monkeypatch)
    whole = rank._score_share
    scored = []

    def score(job: Any, share: Any, *more: Any) -> Any:
        scored.append(share.chunk)
        if scored == [0, 1]:
            raise DeviceError("broken")
        return whole(job, share, *more)

    monkeypatch.setattr(rank, "_score_share", score)
    result = run(options, spark)
    assert (len(launches), scored) == (2, [0, 1, 1, 2])
    assert prepared[:2] == [[0], [1]]
    assert (result.rows, result.error_rows) == (3 * ROWS, 0)
    assert ids(options["output"]) == list(range(3 * ROWS))


@pytest.mark.parametrize("rows", [0, 1])
def test_an_input_of_one_chunk_is_one_wave(
    spark: SparkSession, options: dict[str, Any], prepared: list[list[int]], rows: int
) -> None:
    table = pa.table({"id": pa.array(range(rows)), "text": pa.array(["good"] * rows)})
    pq.write_table(table, options["input"])
    assert run(options, spark).rows == rows
    assert prepared == [[0]]
    assert ids(options["output"]) == list(range(rows))


def test_the_end_of_a_launch_is_that_of_the_wave_that_is_being_prepared(
    spark: SparkSession, tmp_path: Path
) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"

    def hang(_: Any) -> Iterator[int]:
        started.touch()
        while not ended.exists():
            time.sleep(0.05)
        yield 0

    class Hanging:
        are_left = True

        def slots_beside(self) -> int:
            return 1

        def prepare_beside(self, beside: Beside) -> list[int]:
            spark.sparkContext.range(1, numSlices=1).mapPartitions(hang).count()
            return []

    found: Any = Hanging()
    feed = Feed(spark, found, Shares(str(tmp_path / "shares"), 1), list, pytest.fail)
    with feed:
        wait_until(started.exists)
    assert not ended.exists()
    ended.touch()  # for the task's process, which Spark leaves behind
    assert feed.error is None
    assert "sparkinfer-job" not in str(threading.enumerate())


SCORE = '''
"""Scores what it is given, in this process; dies before it prepares the second chunk."""

import os
import signal
import sys
import time
from pathlib import Path

import sparkinfer
from sparkinfer.engines.horovod import engine, waves
from tests.ranks_in_turn import RanksInTurn

options = eval(sys.argv[1])
whole = waves.prepare


def prepare(spark, chunks, *more):
    if chunks[0].number == 1:
        records = Path(options["output"]) / "_sparkinfer" / "chunks"
        while not list(records.glob("00000000*.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(spark, chunks, *more)


waves.prepare, waves.LEAST_RANK_ROWS = prepare, {"cpu": 1}
engine.LAUNCHERS["torch"] = RanksInTurn
sparkinfer.run(sparkinfer.ScoringConfig(**options, master="local[2]"))
'''


def test_what_a_driver_that_is_killed_between_waves_had_scored_is_kept(
    spark: SparkSession, options: dict[str, Any], prepared: list[list[int]], tmp_path: Path
) -> None:
    script = tmp_path / "score.py"
    script.write_text(textwrap.dedent(SCORE))
    command = [sys.executable, str(script), repr(options)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(command, check=False, timeout=300, env=env).returncode == -9
    assert recorded(options["output"]) == {0}
    result = run(options, spark)
    assert (result.rows_before, result.statistics.rows) == (ROWS, 2 * ROWS)
    assert prepared == [[1], [2]]
    assert ids(options["output"]) == list(range(3 * ROWS))


def score_in_waves(spark: object, options: dict) -> list:
    import time
    from pathlib import Path

    import sparkinfer
    from sparkinfer.engines.horovod import waves

    whole = waves.prepare
    calls = []

    def prepare(spark: object, chunks: list, *more: object) -> object:
        calls.append([chunk.number for chunk in chunks])
        records = Path(options["output"]) / "_sparkinfer" / "chunks"
        while len(calls) == 2 and not list(records.glob("00000000*.json")):
            time.sleep(0.01)
        return whole(spark, chunks, *more)

    waves.prepare, waves.LEAST_RANK_ROWS = prepare, {"cpu": 1}
    sparkinfer.run(sparkinfer.ScoringConfig(**options), spark)
    return calls


@pytest.mark.parametrize(
    "launcher", ["torch", pytest.param("horovod", marks=[NEEDS_HOROVOD, pytest.mark.slow])]
)
def test_a_slot_beside_two_ranks_prepares_what_they_score_next(
    classifier: Path, tmp_path: Path, launcher: str
) -> None:
    write_input(tmp_path / "in.parquet", chunks=5)
    of_ranks = {"num_workers": 2, "horovod": {"launcher": launcher}}
    options = run_options(classifier, tmp_path) | of_ranks
    calls = run_driver("local[3]", score_in_waves, {"options": options}, timeout_s=300)
    assert calls == [[0, 1], [2, 3], [4]]
    assert ids(options["output"]) == list(range(5 * ROWS))
