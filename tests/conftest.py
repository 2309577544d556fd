"""Fixtures that more than one test module uses."""

from __future__ import annotations

import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import hypothesis
import pytest

from sparkinfer.spark.java import ensure_java
from tests.fake_hub import FakeHub
from tests.fuse_mount import FuseMount, why_not
from tests.postgres_server import PostgresServer
from tests.standalone_cluster import SHORT_LIVED_JVM, StandaloneCluster
from tests.tiny_models import make_classifier

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from sparkinfer.models.running import RunningModel


# The models are tiny: threads of one process that wait for one another would take most of the time.
# Nothing has imported torch yet.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A machine that does other work, too, takes its time over an example.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that need Spark first: one of them alone at the end would keep one core idle."""
    on_spark = {item.path for item in items if item.get_closest_marker("spark")}
    items.sort(key=lambda item: item.path not in on_spark)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this process and of those that it starts: not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARKINFER_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has runs in this process end without drawing, of which there are hundreds."""
    monkeypatch.setattr("sparkinfer.api.functions.report_at_end", lambda config: None)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """A session on `local[2]` in this process."""
    ensure_java()
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")
        .appName("tests")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.extraJavaOptions", SHORT_LIVED_JVM)
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    stop_session_and_jvm(session)


def stop_session_and_jvm(session: SparkSession) -> None:
    """Ends a session and its JVM, which pyspark leaves running until the interpreter ends."""
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    session.stop()
    SparkContext._gateway = SparkContext._jvm = None
    if gateway is not None:
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(30)


@pytest.fixture(scope="session")
def standalone_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneCluster]:
    """A cluster of two workers with one core each, and one GPU for sessions that ask for it."""
    ensure_java()
    work_dir = tmp_path_factory.mktemp("cluster")
    with StandaloneCluster(work_dir, gpu_addresses=[["0"], ["1"]]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random text classifier."""
    return make_classifier(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture
def model(classifier: Path) -> RunningModel:
    """That classifier, ready to score on the CPU in float32."""
    from sparkinfer.models.backends import PLAIN
    from sparkinfer.models.checkpoint import Checkpoint
    from sparkinfer.models.running import load_way
    from tests.model_options import options_of

    options = options_of()
    return load_way(Checkpoint(classifier, options, "cpu"), PLAIN)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub without models, on this machine."""
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL with pgvector."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["chroma", "postgresql"])
def vector_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a store, in which there is nothing of that name yet."""
    if request.param == "chroma":
        return f"chroma:{tmp_path / 'chroma'}#documents"
    server: PostgresServer = request.getfixturevalue("postgres")
    return f"{server.address}#t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[FuseMount]:
    """A folder as two hosts mount it, with faults to switch on; skips where nothing can be."""
    problem = why_not()
    if problem is not None:
        pytest.skip(f"no FUSE mount: {problem}")
    with FuseMount(tmp_path / "backing", tmp_path / "host0", tmp_path / "host1") as mount:
        yield mount


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output folder on a disk, and on a store that cannot rename."""
    if request.param == "local":
        return str(tmp_path / "out")
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    return "memory://bucket/out"


@pytest.fixture
def ranks_in_turn(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Options of runs of the horovod engine whose two ranks are started by `RanksInTurn`."""
    import torch

    from sparkinfer.engines.horovod import engine as horovod
    from tests.ranks_in_turn import RanksInTurn

    threads = torch.get_num_threads()
    for name in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")  # ranks set what is not set
    monkeypatch.setitem(horovod.LAUNCHERS, "torch", RanksInTurn)
    yield {"num_workers": 2, "horovod": {"launcher": "torch", "reader": "pyarrow"}}
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_line_for_slow_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed must not depend on how long this machine takes before the first row."""
    from sparkinfer import display

    monkeypatch.setattr(display, "SHOWN_AFTER_S", 3600.0)
