"""What only the horovod engine has: prepared rows, readers, launchers, ranks that can die."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.engines import horovod
from sparkinfer.engines.horovod import HorovodEngine
from sparkinfer.engines.launchers import has_horovod
from sparkinfer.engines.rank_worker import Placement
from sparkinfer.engines.readers import choose_reader
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, InputError, JobError
from sparkinfer.models.sources import resolve
from tests.standalone_cluster import StandaloneCluster, run_driver
from tests.tiny_models import sentences

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.slow]

LAUNCHERS = ["horovod", "torch"] if has_horovod() else ["torch"]
READERS = sorted({choose_reader("auto", "out"), "pyarrow"})

NAMES = ["id", "text", "prediction", "probabilities", "n_tokens", "truncated", "error"]


def difficult_texts(count: int) -> list[str | None]:
    """Returns texts of skewed lengths with nulls, empty and over-long texts and many duplicates."""
    texts: list[str | None] = [*sentences(count)]
    special = [None, "", "film " * 500, "good", "good", "😀 a\nb"]
    return [special[row % 6] if row % 5 == 3 else text for row, text in enumerate(texts)]


def write(path: Path, texts: list[str | None]) -> Path:
    ids = pa.array(range(len(texts)), pa.int64())
    table = pa.table({"id": ids, "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=100)
    return path


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


@pytest.fixture(scope="module")
def reference(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the local engine for the longest input; shorter ones are its beginning."""
    folder = tmp_path_factory.mktemp("reference")
    source = write(folder / "in.parquet", difficult_texts(1003))
    sparkinfer.run(config_for(classifier, source, folder / "out", engine="local"))
    return rows_of(folder / "out")


# Pairs of launcher, reader, number of ranks and number of rows, not all of their products: a launch
# takes many seconds.
CASES = [
    ("horovod", "petastorm", 2, 1003),
    ("torch", "pyarrow", 2, 1003),
    ("horovod", "pyarrow", 1, 7),
    ("torch", "petastorm", 1, 1003),
    ("torch", "petastorm", 2, 1),
    ("torch", "pyarrow", 1, 0),
]
CASES_OF_THREE = [("horovod", "pyarrow", 3, 1003)]


def can_run(case: tuple[str, str, int, int]) -> bool:
    return case[0] in LAUNCHERS and case[1] in READERS


@pytest.mark.parametrize("case", [case for case in CASES if can_run(case)], ids=str)
def test_every_launcher_and_reader_gives_the_rows_of_the_local_engine(
    spark: SparkSession,
    classifier: Path,
    tmp_path: Path,
    reference: list[dict[str, Any]],
    case: tuple[str, str, int, int],
) -> None:
    launcher, reader, ranks, rows = case
    source = write(tmp_path / "in.parquet", difficult_texts(1003)[:rows])
    config = config_for(
        classifier,
        source,
        tmp_path / "out",
        num_workers=ranks,
        horovod={"launcher": launcher, "reader": reader},
        batching={"max_batch_tokens": 128},
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    result = sparkinfer.run(config, spark)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert result.rows == result.statistics.rows == rows
    assert result.workers.count == ranks
    assert_same_rows(rows_of(tmp_path / "out"), reference[:rows])
    assert list(result.phases) == ["prepare", *(["start"] if rows else []), "score"]
    left = [path.name for path in (tmp_path / "out" / "_sparkinfer").iterdir()]
    assert left == ["result.json"]


def score_cases(spark: object, cases: list, options: dict) -> list:
    import sparkinfer

    ranks = []
    for launcher, reader, workers, rows in cases:
        config = sparkinfer.ScoringConfig(
            **options,
            input=f"{options['model']}-{rows}.parquet",
            output=f"{options['model']}-{launcher}-{reader}-{rows}",
            num_workers=workers,
            horovod={"launcher": launcher, "reader": reader},
            batching={"max_batch_tokens": 128},
        )
        result = sparkinfer.run(config, spark)
        ranks.append([report.device.split()[-1] for report in result.reports])
    return ranks


def test_three_ranks_give_the_rows_of_the_local_engine(
    classifier: Path, tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    cases = [
        (launcher if launcher in LAUNCHERS else "torch", reader, ranks, rows)
        for launcher, reader, ranks, rows in CASES_OF_THREE
        if reader in READERS
    ]
    model = tmp_path / "model"
    model.symlink_to(classifier)
    for *_, rows in cases:
        write(tmp_path / f"model-{rows}.parquet", difficult_texts(1003)[:rows])
    options = {"model": str(model), "input_col": "text", "engine": "horovod", "dtype": "float32"}
    run_driver("local[3]", score_cases, {"cases": cases, "options": options}, timeout_s=300)
    for launcher, reader, _, rows in cases:
        found = rows_of(tmp_path / f"model-{launcher}-{reader}-{rows}")
        assert_same_rows(found, reference[:rows])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_run_on_the_executors_of_a_cluster(
    standalone_cluster: StandaloneCluster,
    classifier: Path,
    tmp_path: Path,
    reference: list[dict[str, Any]],
    launcher: str,
) -> None:
    model = tmp_path / "model"
    model.symlink_to(classifier)
    write(tmp_path / "model-1003.parquet", difficult_texts(1003))
    options = {"model": str(model), "input_col": "text", "engine": "horovod", "dtype": "float32"}
    case = (launcher, "pyarrow", 2, 1003)
    arguments = {"cases": [case], "options": options}
    [ranks] = run_driver(standalone_cluster, score_cases, arguments, timeout_s=300)
    assert len(ranks) == 2
    found = rows_of(tmp_path / f"model-{launcher}-pyarrow-1003")
    assert_same_rows(found, reference)


def report_tasks(spark: object, folder: str) -> list:
    from sparkinfer.engines.prepare import _without_gpus

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
            if(id % 2 = 0, null, encode('x', 'utf-8')) as data, id as `a.b`, id as `c``d`
        from range(40)
        """
    )


def test_columns_of_any_type_are_carried_as_by_the_other_engine(
    spark: SparkSession, classifier: Path, tmp_path: Path
) -> None:
    # A view: its rows differ each time that it is read (uuid), so each must be read once.
    typed_rows(spark).createOrReplaceTempView("typed")
    written = {}
    for engine in ("pandas_udf", "horovod"):
        config = config_for(classifier, "typed", tmp_path / engine, engine=engine)
        assert sparkinfer.run(config, spark).rows == 40
        written[engine] = spark.read.parquet(str(tmp_path / engine))
    ours, theirs = written["horovod"], written["pandas_udf"]
    assert ours.schema.json() == theirs.schema.json()
    names = [name for name in ours.columns if name not in ("key", "probability", "probabilities")]
    frames = [df.select(*[f"`{n.replace('`', '``')}`" for n in names]) for df in (ours, theirs)]
    found, expected = ([str(row) for row in frame.orderBy("id").collect()] for frame in frames)
    assert found == expected
    assert ours.select("key").distinct().count() == 40


def test_a_column_that_cannot_be_carried_is_refused(spark: SparkSession, classifier: Path) -> None:
    df = spark.sql("select 'good' as text, make_ym_interval(1) as span")
    engine = HorovodEngine(config_for(classifier, "x", Path("y")), spark, df)
    with pytest.raises(
        InputError, match="column 'span' has type interval year to month.*--carry-cols"
    ):
        engine.open_input()


def test_more_ranks_than_slots_are_refused(
    spark: SparkSession, classifier: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.parquet", ["good"])
    config = config_for(classifier, source, tmp_path / "out", num_workers=3)
    with pytest.raises(ConfigError, match="num_workers=3: the executors hold 2 tasks"):
        sparkinfer.run(config, spark)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("horovod" not in LAUNCHERS, reason="horovod is not installed")
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
    monkeypatch.setattr("sparkinfer.engines.launchers.has_horovod", lambda: False)
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
    spark: SparkSession, classifier: Path, tmp_path: Path, held_slot: None, launcher: str
) -> None:
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
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_exception_in_a_rank_reaches_the_driver_with_its_traceback(
    spark: SparkSession, classifier: Path, tmp_path: Path, monkeypatch: Any, launcher: str
) -> None:
    whole = horovod.prepare

    def prepare_and_break(*arguments: Any) -> Any:
        prepared = whole(*arguments)
        largest = max(prepared.files, key=lambda file: file.tokens)
        (Path(prepared.folder) / "carried" / largest.name).write_bytes(b"no Parquet")
        return prepared

    monkeypatch.setattr(horovod, "prepare", prepare_and_break)
    source = write(tmp_path / "in.parquet", difficult_texts(300))
    config = config_for(
        classifier, source, tmp_path / "out", num_workers=2, horovod={"launcher": launcher}
    )
    with pytest.raises(
        JobError, match=r"rank \d \(process \d+ on .*\) failed: ArrowInvalid"
    ) as raised:
        sparkinfer.run(config, spark)
    assert "in _read_beside" in str(raised.value.__cause__)
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


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


@pytest.mark.skipif("horovod" not in LAUNCHERS, reason="horovod is not installed")
def test_databricks_runner_is_chosen_where_it_is_and_starts_the_ranks(
    spark: SparkSession, classifier: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """A fake with the documented signature stands for Databricks' runner; its ranks are real."""
    package = tmp_path / "sparkdl"
    package.mkdir()
    (package / "__init__.py").write_text(HOROVOD_RUNNER)
    monkeypatch.syspath_prepend(tmp_path)
    source = write(tmp_path / "in.parquet", difficult_texts(50))
    config = config_for(classifier, source, tmp_path / "out")
    assert type(HorovodEngine(config, spark)._launcher).__name__ == "HorovodRunnerLauncher"
    result = sparkinfer.run(config, spark)
    assert (result.rows, len(result.reports)) == (50, 2)


@pytest.mark.skipif("horovod" not in LAUNCHERS, reason="horovod is not installed")
def test_a_rank_without_horovods_variables_asks_horovod_for_its_place() -> None:
    script = "from sparkinfer.engines.launchers import horovod_placement as p; print(p())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(Placement(rank=0, local_rank=0, world_size=1))


@pytest.mark.parametrize("keep_model", [True, False])
def test_the_process_that_ran_the_gate_keeps_its_model_only_if_it_scores(
    classifier: Path, keep_model: bool
) -> None:
    from sparkinfer.engines.spark_worker import WorkerJob, _cache, gate_outcome, read_outcome

    config = config_for(classifier, "x", Path("y"), acceleration="none")
    source = resolve(config.model, revision=None, loading=config.loading)
    outcome = gate_outcome(WorkerJob(config, source, "cpu", cores=1), keep_model)
    models = len(_cache)
    _cache.clear()
    assert read_outcome(outcome).accepted.dtype == "float32"
    assert models == int(keep_model)
