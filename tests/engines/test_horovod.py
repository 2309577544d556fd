"""What only the horovod engine has: prepared rows, readers, launchers, ranks that can die."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.engines.horovod import engine as horovod
from sparkinfer.engines.horovod import supervision, waves
from sparkinfer.engines.horovod.engine import HorovodEngine
from sparkinfer.engines.horovod.launchers import has_horovod
from sparkinfer.engines.horovod.prepare import read_list
from sparkinfer.engines.horovod.rank import Placement
from sparkinfer.engines.horovod.readers import choose_reader
from sparkinfer.engines.horovod.shares import deal_chunk
from sparkinfer.engines.spark_worker import call_in_worker, read_result
from sparkinfer.exceptions import (
    ConfigError,
    EngineUnavailableError,
    InputError,
    JobError,
    RowConservationError,
)
from sparkinfer.plan.plan import Workers
from sparkinfer.plan.processors import make_processor
from sparkinfer.workers import resident
from tests.ranks_in_turn import RanksInTurn
from tests.standalone_cluster import StandaloneCluster, run_driver
from tests.tiny_models import sentences
from tests.written import without_run

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark

LAUNCHERS = ["horovod", "torch"] if has_horovod() else ["torch"]
NEEDS_HOROVOD = pytest.mark.skipif(not has_horovod(), reason="horovod is not installed")
READERS = sorted({choose_reader("auto", "out"), "pyarrow"})

NAMES = ["id", "text", "prediction", "probabilities", "n_tokens", "truncated", "error"]


def difficult_texts(count: int) -> list[str | None]:
    """Returns texts of skewed lengths with nulls, empty and over-long texts and many duplicates."""
    texts: list[str | None] = [*sentences(count)]
    special = [None, "", "film " * 500, "good", "good", "😀 a\nb"]
    return [special[row % 6] if row % 5 == 3 else text for row, text in enumerate(texts)]


def write(path: Path, texts: list[str | None], *row_groups: int) -> Path:
    """Writes a file; the rows of its row groups may be given."""
    ids = pa.array(range(len(texts)), pa.int64())
    table = pa.table({"id": ids, "text": pa.array(texts, pa.string())})
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for rows in row_groups or [len(texts)]:
            writer.write_table(table.slice(start, rows))
            start += rows
    return path


CHUNKS = (1, 400, 1, 400, 201)
"""Rows of the chunks of most tests here, each a row group. Those of one row have fewer prepared
row groups than there are ranks."""

OPTIONS = {"chunks": {"target_rows": 400}, "batching": {"max_batch_tokens": 128}}


def config_for(classifier: Path, source: Path | str, output: Path, **options: Any) -> Any:
    return sparkinfer.ScoringConfig(
        **{
            "model": str(classifier),
            "input": str(source),
            "input_col": "text",
            "output": str(output),
            "engine": "horovod",
            "dtype": "float32",
            **options,
        }
    )


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pads.dataset(output, format="parquet").to_table().sort_by("id").to_pylist()


def assert_same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        for name in NAMES:
            if name == "probabilities" and wanted[name] is not None:
                assert row[name] == pytest.approx(wanted[name], abs=2e-5)
            else:
                assert row[name] == wanted[name], (name, wanted)


def shares(output: Path) -> dict[int, list[int]]:
    """Returns by chunk the rows of its files; there is a file for each rank that had some."""
    found: dict[int, list[int]] = defaultdict(list)
    for path in sorted(output.glob("part-*.parquet")):
        found[int(path.name.split("-")[1])].append(pq.read_metadata(path).num_rows)
    return dict(found)


def visible(output: Path) -> list[str]:
    names = (path.name for path in output.iterdir() if path.name != "_sparkinfer")
    return sorted(without_run(name) for name in names)


def records(output: Path) -> dict[int, dict[str, Any]]:
    files = (output / "_sparkinfer" / "chunks").glob("*.json")
    return {int(path.name[:8]): json.loads(path.read_text()) for path in files}


@pytest.fixture(scope="module")
def reference(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the local engine for `difficult_texts(1003)`."""
    folder = tmp_path_factory.mktemp("reference")
    source = write(folder / "in.parquet", difficult_texts(1003))
    sparkinfer.run(config_for(classifier, source, folder / "out", engine="local"))
    return rows_of(folder / "out")


# A launch takes many seconds, so each states several facts: between them, the next three tests have
# each launcher, each reader, and one, two and (one of them) three ranks.


@pytest.mark.parametrize(
    ("launcher", "reader"),
    [
        pytest.param("horovod", READERS[0], marks=NEEDS_HOROVOD),
        pytest.param("torch", READERS[-1], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_a_rank_failed_says_why_and_goes_on_with_another_number_of_ranks(
    spark: SparkSession,
    classifier: Path,
    tmp_path: Path,
    reference: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    launcher: str,
    reader: str,
) -> None:
    def run(num_workers: int) -> sparkinfer.RunResult:
        more = {"num_workers": num_workers, "horovod": {"launcher": launcher, "reader": reader}}
        return sparkinfer.run(config_for(classifier, source, output, **more, **OPTIONS), spark)

    def prepare_and_break(session: Any, chunks: Any, job: Any, deaths: Any, beside: Any) -> Any:
        """Breaks what rank 0 reads after the first chunk, which is rank 0's alone."""
        prepared = whole(session, chunks, job, deaths, beside)
        first, files = ([*read_list(job.folder, *prepared[chunk])] for chunk in range(2))
        for file in deal_chunk(files, [first[0].tokens, 0])[0]:
            (Path(job.folder) / "carried" / file.name).write_bytes(b"no Parquet")
        return prepared

    whole = waves.prepare
    source = write(tmp_path / "in.parquet", difficult_texts(1003), *CHUNKS)
    output = tmp_path / "out"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(waves, "prepare", prepare_and_break)
        with pytest.raises(
            JobError, match=r"rank 0 \(process \d+ on .*\) failed: ArrowInvalid"
        ) as raised:
            run(num_workers=2)
    assert "in _read_columns" in str(raised.value.__cause__)
    assert shares(output) == {0: [1]}
    assert visible(output) == ["part-00000000-000-RUN.parquet"]
    assert list(records(output)) == [0]

    result = run(num_workers=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (result.rows, result.rows_before, result.workers.count) == (1003, 1, 1)
    assert result.statistics.rows == 1002
    assert list(result.phases) == [
        "checks", "workers", "model", "gate", "prepare", "start", "score", "publish",
    ]  # fmt: skip
    assert shares(output) == {number: [rows] for number, rows in enumerate(CHUNKS)}
    assert_same_rows(rows_of(output), reference)
    left = {path.name for path in (output / "_sparkinfer").iterdir()}
    assert left == {"manifest-000001.json", "chunks", "lease", "runs"}


def score(spark: object, options: dict) -> int:
    import sparkinfer

    return sparkinfer.run(sparkinfer.ScoringConfig(**options), spark).workers.count


def score_in_driver(
    cluster: StandaloneCluster | str, classifier: Path, folder: Path, case: tuple[Any, ...]
) -> None:
    """Scores `difficult_texts(1003)`, in the case (launcher, reader, ranks, output)."""
    launcher, reader, ranks, output = case
    source = write(folder / "in.parquet", difficult_texts(1003), *CHUNKS)
    options = {
        **{"model": str(classifier), "input": str(source), "input_col": "text"},
        **{"engine": "horovod", "dtype": "float32", "acceleration": "none", **OPTIONS},
        **{"num_workers": ranks, "horovod": {"launcher": launcher, "reader": reader}},
        "output": str(output),
    }
    assert run_driver(cluster, score, {"options": options}, timeout_s=300) == ranks


@pytest.mark.parametrize(
    ("launcher", "reader"),
    [
        pytest.param("horovod", READERS[-1], marks=[NEEDS_HOROVOD, pytest.mark.slow]),
        ("torch", READERS[0]),
    ],
)
def test_ranks_run_on_the_executors_of_a_cluster(
    standalone_cluster: StandaloneCluster,
    classifier: Path,
    tmp_path: Path,
    reference: list[dict[str, Any]],
    launcher: str,
    reader: str,
) -> None:
    output = tmp_path / "out"
    score_in_driver(standalone_cluster, classifier, tmp_path, (launcher, reader, 2, output))
    assert_same_rows(rows_of(output), reference)
    assert [sum(share) for share in shares(output).values()] == list(CHUNKS)
    assert [len(share) for share in shares(output).values()] == [1, 2, 1, 2, 2]


HOROVOD_RUNNER = '''
"""Stands for Databricks' sparkdl: the documented signature, over horovod.spark."""


class HorovodRunner:
    def __init__(self, *, np, driver_log_verbosity="log_callback_only"):
        assert driver_log_verbosity in ("all", "log_callback_only")
        self.np = np

    def run(self, main, **kwargs):
        import horovod.spark

        return horovod.spark.run(main, kwargs=kwargs, num_proc=self.np, verbose=0)[0]
'''


@pytest.fixture
def sparkdl(tmp_path: Path) -> Path:
    """A folder with a package that stands for Databricks' `sparkdl`."""
    package = tmp_path / "databricks" / "sparkdl"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(HOROVOD_RUNNER)
    return package.parent


def test_three_ranks_that_databricks_runner_starts_give_the_rows_of_the_local_engine(
    classifier: Path,
    tmp_path: Path,
    reference: list[dict[str, Any]],
    sparkdl: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fake with the documented signature stands for Databricks' runner; its ranks are real.

    Without Horovod, it is TorchDistributor that starts three ranks.
    """
    monkeypatch.setenv("PYTHONPATH", str(sparkdl))
    launcher = "horovod_runner" if "horovod" in LAUNCHERS else "torch"
    output = tmp_path / "out"
    score_in_driver("local[3]", classifier, tmp_path, (launcher, "pyarrow", 3, output))
    assert_same_rows(rows_of(output), reference)
    assert [len(share) for share in shares(output).values()] == [1, 3, 1, 3, 3]


@NEEDS_HOROVOD
def test_databricks_runner_is_chosen_where_it_is(
    spark: SparkSession, classifier: Path, sparkdl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(sparkdl)
    engine = HorovodEngine(config_for(classifier, "x", Path("y")), spark)
    assert type(engine._launcher).__name__ == "HorovodRunnerLauncher"


def test_a_row_that_prepare_loses_fails_the_run(
    spark: SparkSession,
    classifier: Path,
    tmp_path: Path,
    ranks_in_turn: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = horovod.read_list
    lost = []

    def read_and_lose(folder: str, name: str) -> Any:
        files = whole(folder, name)
        if files[0].chunk == 1:
            lost.append(files.pop().rows)
        return files

    monkeypatch.setattr(horovod, "read_list", read_and_lose)
    source = write(tmp_path / "in.parquet", difficult_texts(21), 1, 20)
    options = ranks_in_turn | OPTIONS | {"chunks": {"target_rows": 20}}
    with pytest.raises(RowConservationError, match="chunk 1 has 20 rows but") as raised:
        sparkinfer.run(config_for(classifier, source, tmp_path / "out", **options), spark)
    assert f"but {20 - lost[0]} were written; none of it was published" in str(raised.value)
    assert visible(tmp_path / "out") == ["part-00000000-000-RUN.parquet"]
    assert list(records(tmp_path / "out")) == [0]


def test_a_chunk_without_rows_is_recorded_and_starts_no_rank(
    spark: SparkSession,
    classifier: Path,
    tmp_path: Path,
    ranks_in_turn: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First alone, and then beside one that has rows."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", [])
    output = tmp_path / "out"
    config = config_for(
        classifier, tmp_path / "in", output, incremental=True, **ranks_in_turn, **OPTIONS
    )
    with monkeypatch.context() as patch:
        patch.delattr(RanksInTurn, "launch")
        result = sparkinfer.run(config, spark)
    assert (result.rows, result.statistics.rows) == (0, 0)
    assert list(result.phases)[-3:] == ["prepare", "score", "publish"]
    assert pads.dataset(output, format="parquet").schema.names[:3] == ["id", "text", "prediction"]
    assert (shares(output), list(records(output))) == ({0: [0]}, [0])
    assert "_SUCCESS" in visible(output)

    write(tmp_path / "in" / "b.parquet", ["good", "bad"])
    with monkeypatch.context() as patch:
        patch.setattr(RanksInTurn, "launch", lambda *_: None)
        with pytest.raises(JobError, match="no rank started"):
            sparkinfer.run(config, spark)
    write(tmp_path / "in" / "c.parquet", [])
    result = sparkinfer.run(config, spark)
    assert (result.rows, result.rows_before) == (2, 0)
    assert shares(output) == {0: [0], 1: [2], 2: [0]}
    assert [record["rows"] for _, record in sorted(records(output).items())] == [0, 2, 0]


def report_tasks(spark: object, folder: str) -> list:
    from sparkinfer.engines.horovod.prepare_stage import _without_gpus

    def meet(batches: object) -> object:
        import pathlib
        import time

        import pyarrow as pa
        from pyspark import TaskContext

        context = TaskContext.get()
        here = pathlib.Path(folder)
        for _ in batches:
            (here / str(context.partitionId())).touch()
            deadline = time.monotonic() + 30
            while len(list(here.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            met = len(list(here.iterdir())) == 2
            gpus = len(context.resources())
            yield pa.RecordBatch.from_pylist([{"met": met, "gpus": gpus}])

    df = spark.range(0, 2, 1, 2).mapInArrow(meet, "met boolean, gpus long")
    return [row.asDict() for row in _without_gpus(spark, df)]


def test_prepare_is_not_held_to_one_task_per_gpu(tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    (tmp_path / "cluster").mkdir()
    one_gpu = StandaloneCluster(tmp_path / "cluster", num_workers=1, cores=2, gpu_addresses=[["0"]])
    with one_gpu as cluster:
        conf = {
            "spark.executor.resource.gpu.amount": "1",
            "spark.task.resource.gpu.amount": "1",
        }
        tasks = run_driver(cluster, report_tasks, {"folder": str(tmp_path / "met")}, conf)
    assert tasks == [{"met": True, "gpus": 0}] * 2


def typed_rows(spark: SparkSession) -> DataFrame:
    return spark.sql(
        """
        select id, concat('film ', id % 7) as text, uuid() as key,
            timestamp'2024-03-31 02:30:00.123456' + make_dt_interval(id) as at,
            timestamp_ntz'1969-12-31 23:59:59.999999' as wall, date'1600-02-29' as day,
            cast(id / 3 as decimal(20, 5)) as price, cast(id as tinyint) as small,
            cast(if(id % 2 = 0, null, 'nan') as double) as odd, array(1, null) as numbers,
            map('a', id) as counts, named_struct('x', id, 'y', array('q')) as nested,
            if(id % 2 = 0, null, encode('x', 'utf-8')) as data, id as `a.b`, id as `c``d`,
            map('a', timestamp_ntz'2024-01-01 12:00:00') as walls, interval '1' day as span
        from range(40)
        """
    )


def test_columns_of_any_type_are_carried_as_by_the_other_engine(
    spark: SparkSession, classifier: Path, tmp_path: Path, ranks_in_turn: dict[str, Any]
) -> None:
    # A view: its rows differ each time that it is read (uuid), so each must be read once.
    typed_rows(spark).createOrReplaceTempView("typed")
    written = {}
    for engine in ("pandas_udf", "horovod"):
        options = ranks_in_turn | OPTIONS | {"engine": engine, "chunks": {"target_rows": 15}}
        config = config_for(classifier, "typed", tmp_path / engine, **options)
        assert sparkinfer.run(config, spark).rows == 40
        assert len(shares(tmp_path / engine)) > 1
        written[engine] = spark.read.parquet(str(tmp_path / engine))
    ours, theirs = written["horovod"], written["pandas_udf"]
    assert ours.schema.json() == theirs.schema.json()
    given = spark.table("typed").schema
    kinds = {field.name: field.dataType.simpleString() for field in ours.schema}
    for field in given:
        assert kinds[field.name] == field.dataType.simpleString()
    names = [name for name in ours.columns if name not in ("key", "probability", "probabilities")]
    frames = [df.select(*[f"`{n.replace('`', '``')}`" for n in names]) for df in (ours, theirs)]
    found, expected = ([str(row) for row in frame.orderBy("id").collect()] for frame in frames)
    assert found == expected
    assert ours.select("key").distinct().count() == 40


def test_a_column_that_cannot_be_carried_is_refused(spark: SparkSession, classifier: Path) -> None:
    df = spark.sql("select 'good' as text, make_ym_interval(1) as span")
    config = config_for(classifier, "x", Path("y")).replace(input=None)
    with pytest.raises(
        InputError, match="column 'span' has type interval year to month.*--carry-cols"
    ):
        sparkinfer.run(config, spark, df=df)


def test_more_ranks_than_slots_are_refused(
    spark: SparkSession, classifier: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.parquet", ["good"])
    config = config_for(classifier, source, tmp_path / "out", num_workers=3)
    with pytest.raises(ConfigError, match="num_workers=3: the executors run 2 tasks"):
        sparkinfer.run(config, spark)
    assert not (tmp_path / "out").exists()


@NEEDS_HOROVOD
def test_horovod_in_another_thread_than_the_main_one_is_refused(
    spark: SparkSession, classifier: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.parquet", ["good"])
    config = config_for(classifier, source, tmp_path / "out", horovod={"launcher": "horovod"})
    raised: list[Exception] = []

    def run() -> None:
        try:
            sparkinfer.run(config, spark)
        except ConfigError as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="another")
    thread.start()
    thread.join()
    assert "in thread 'another'" in str(raised[0])


def test_a_spark_connect_session_is_refused(classifier: Path) -> None:
    class ConnectSession:
        """Stands for a session of Spark Connect, whose server is not part of this environment."""

        @property
        def sparkContext(self) -> Any:  # noqa: N802
            raise AttributeError("no attribute sparkContext")

    session: Any = ConnectSession()
    with pytest.raises(EngineUnavailableError, match="Spark Connect.*classic session"):
        HorovodEngine(config_for(classifier, "x", Path("y")), session)


@pytest.mark.parametrize(
    ("launcher", "package"), [("horovod", "install_horovod.py"), ("horovod_runner", "sparkdl")]
)
def test_a_launcher_that_is_not_installed_is_named(
    spark: SparkSession,
    classifier: Path,
    tmp_path: Path,
    launcher: str,
    package: str,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr("sparkinfer.engines.horovod.launchers.has_horovod", lambda: False)
    source = write(tmp_path / "in.parquet", ["good"])
    config = config_for(classifier, source, tmp_path / "out", horovod={"launcher": launcher})
    with pytest.raises(EngineUnavailableError, match=f"{package}.*horovod.launcher=torch"):
        sparkinfer.run(config, spark)


@pytest.fixture
def held_slot(spark: SparkSession, tmp_path: Path) -> Iterator[None]:
    """Keeps one of the session's two slots busy."""
    started, ended = tmp_path / "started", tmp_path / "ended"

    def hold(_: Any) -> Iterator[int]:
        started.touch()
        while not ended.exists():
            time.sleep(0.05)
        yield 0

    context = spark.sparkContext
    thread = threading.Thread(
        target=lambda: context.range(1, numSlices=1).mapPartitions(hold).count()
    )
    thread.start()
    while not started.exists():
        time.sleep(0.05)
    yield
    ended.touch()
    thread.join()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_that_find_no_slot_end_the_run_in_time(
    spark: SparkSession,
    classifier: Path,
    tmp_path: Path,
    held_slot: None,
    monkeypatch: pytest.MonkeyPatch,
    launcher: str,
) -> None:
    monkeypatch.setattr(supervision, "ABORT_GRACE_S", 1.0)  # who waits for a slot hears nothing
    source = write(tmp_path / "in.parquet", ["good"] * 3)
    config = config_for(
        classifier,
        source,
        tmp_path / "out",
        num_workers=2,
        horovod={"launcher": launcher, "start_timeout_s": 5},
    )
    with pytest.raises(JobError, match="Timed out|did not start within 5 s"):
        sparkinfer.run(config, spark)
    assert (visible(tmp_path / "out"), records(tmp_path / "out")) == ([], {})


@NEEDS_HOROVOD
def test_a_rank_without_horovods_variables_asks_horovod_for_its_place() -> None:
    script = "from sparkinfer.engines.horovod.launchers import horovod_placement as p; print(p())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(Placement(rank=0, local_rank=0, world_size=1))


@pytest.mark.parametrize("scores_later", [True, False])
def test_the_process_that_ran_the_gate_keeps_its_model_only_if_it_scores(
    classifier: Path, scores_later: bool
) -> None:
    config = config_for(classifier, "x", Path("y"), acceleration="none")
    processor = make_processor(config).resolved()
    resident.release()
    outcome = call_in_worker(processor.try_out, Workers("cpu", 1), scores_later)
    models = len(resident._kept)
    resident.release()
    assert read_result(outcome).accepted.dtype == "float32"
    assert models == int(scores_later)
