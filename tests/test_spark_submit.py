"""The command under a real `spark-submit`, on a cluster that has nothing of this environment.

Its workers have a `PATH`, Spark and a Python without packages. The packed environment that is sent
along holds the wheel, and a path to this environment's other packages in place of a gigabyte.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as pads
import pytest

import sparkinfer
from scripts.make_archive import main as make_archive
from sparkinfer import __main__ as command
from sparkinfer.jobs.claims import read_holder
from sparkinfer.spark.java import ensure_java
from tests.installed import build_wheel, copy_of_source, make_environment, site_packages
from tests.made_up_engine import write_input
from tests.standalone_cluster import DRIVER_CONF, LOOPBACK, StandaloneCluster, end_group, spark_home

CHUNKS, CHUNK_ROWS = 6, 20
WAIT_S = 100.0
BARE_PYTHON = Path(sys.base_prefix) / "bin" / "python3"
IN_ARCHIVE = "./environment/bin/python"
NO_RETRY = ("spark.task.maxFailures=1",)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    wheel = build_wheel(copy_of_source(folder / "source"), folder / "dist")
    return make_environment(folder / "environment", wheel)


@pytest.fixture(scope="module")
def archive(environment: Path) -> Path:
    archive = environment.parent / "environment.tar.gz"
    assert make_archive(str(environment), str(archive)) == 0
    return archive


@dataclass(frozen=True)
class Gateway:
    """A machine from which jobs are submitted: the archive is unpacked in the current folder.

    Attributes:
        cluster: where they run.
        folder: the current folder, with the application file, and everybody's data.
    """

    cluster: StandaloneCluster
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "spark-submit.log"

    @contextmanager
    def submit(
        self, model: Path, *options: str, conf: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Runs `spark-submit` in a process group of its own, which does not outlive the block."""
        settings = [f"{key}={value}" for key, value in DRIVER_CONF.items()]
        settings += [f"spark.driver.host={LOOPBACK}", *conf]
        program = [str(spark_home() / "bin" / "spark-submit"), "--master", self.cluster.url]
        program += [word for setting in settings for word in ("--conf", setting)]
        program += [*options, "sparkinfer_main.py", "score", "--model", str(model)]
        program += ["--input", str(self.folder / "in"), "--input-col", "text"]
        program += ["--output", str(self.output), "--acceleration", "none", "--progress", "none"]
        self.cluster.wait_until_idle()
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [*program, "--set", f"chunks.target_rows={CHUNK_ROWS}"],
                cwd=self.folder,
                env=bare_variables(self.folder) | {"SPARK_HOME": str(spark_home())},
                stdout=log,  # to which Spark also sends what Python writes to stderr
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            end_group(process)

    def complaints(self) -> list[str]:
        """Returns what the last job said, without Spark's own lines."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith("sparkinfer:")]


def bare_variables(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("JAVA_HOME",) if name in os.environ}
    return {"PATH": os.defpath, "HOME": str(home), "SPARK_LOCAL_IP": LOOPBACK, **kept}


@pytest.fixture(scope="module")
def gateway(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    ensure_java()
    folder, logs = tmp_path_factory.mktemp("gateway"), tmp_path_factory.mktemp("cluster")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "environment")
    shutil.copy(command.__file__, folder / "sparkinfer_main.py")
    write_input(folder / "in", files=1, row_groups=CHUNKS, rows=CHUNK_ROWS)
    with StandaloneCluster(logs, worker_environment=bare_variables(logs)) as cluster:
        yield Gateway(cluster, folder)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lease_is_released(output: Path) -> bool:
    holder = read_holder(str(output / "_sparkinfer" / "lease"))
    return holder is not None and holder.released


@pytest.mark.spark
def test_a_job_with_its_environment_along_is_stopped_and_resumes_to_the_end(
    gateway: Gateway, archive: Path, classifier: Path
) -> None:
    along = ("--archives", f"{archive}#environment")
    conf = [f"spark.pyspark.python={IN_ARCHIVE}"]
    records = gateway.output / "_sparkinfer" / "chunks"
    with gateway.submit(classifier, *along, conf=conf) as stopped:
        wait_until(lambda: any(records.glob("*.json")) or stopped.poll() is not None)
        os.killpg(stopped.pid, signal.SIGINT)
        assert stopped.wait(WAIT_S) == 130
        # The driver lets go of the output after the end of Spark, which would print its last line.
        wait_until(lambda: lease_is_released(gateway.output))

    with gateway.submit(classifier, *along, conf=conf) as resumed:
        assert resumed.wait(WAIT_S) == 0
    assert not [line for line in gateway.complaints() if "error" in line]
    rows = pads.dataset(str(gateway.output), format="parquet").to_table()
    assert sorted(rows["id"].to_pylist()) == list(range(CHUNKS * CHUNK_ROWS))
    given = pads.dataset(str(gateway.folder / "in")).to_table()
    scored = rows.filter(pc.field("error").is_null())
    assert len(scored) == len(given) - given["text"].null_count > 0
    assert scored["prediction"].null_count == 0
    unpacked = gateway.cluster.work_dir.glob("worker-*/app-*/*/environment")
    assert {path.parts[-4] for path in unpacked} == {"worker-0", "worker-1"}


@pytest.mark.spark
@pytest.mark.parametrize(
    ("python", "said"),
    [
        (IN_ARCHIVE, f"the nodes have no Python '{IN_ARCHIVE}'; set spark.pyspark.python to one"),
        (str(BARE_PYTHON), "the workers' Python has no module 'sparkinfer'; install this package"),
    ],
)
def test_without_the_archive_one_line_says_what_to_do(
    gateway: Gateway, classifier: Path, python: str, said: str
) -> None:
    conf = [f"spark.pyspark.python={python}", f"spark.pyspark.driver.python={IN_ARCHIVE}"]
    with gateway.submit(classifier, conf=[*conf, *NO_RETRY]) as submitted:
        assert submitted.wait(WAIT_S) == 2
    [line] = gateway.complaints()
    assert line.startswith(f"sparkinfer: error: {said}")
    assert line.endswith("or send one along by spark-submit --archives (docs/spark_submit.md)")


def test_a_driver_without_the_package_says_what_to_do() -> None:
    done = subprocess.run(
        [BARE_PYTHON, command.__file__, "score"], capture_output=True, text=True, env={}
    )
    assert done.returncode == 2
    assert "has no module 'sparkinfer'; set spark.pyspark.driver.python" in done.stderr
    assert done.stderr.count("\n") == 1


def test_run_as_a_file_the_packages_modules_are_nobody_elses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = str(Path(sparkinfer.__file__).parent)
    monkeypatch.setattr(sys, "path", [package, str(tmp_path), *sys.path])
    monkeypatch.setattr(command, "main", lambda: 0)
    assert command.main_of_a_file() == 0
    assert package not in sys.path
    assert sys.path[0] == str(tmp_path)


def test_an_environment_with_an_editable_install_is_not_packed(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    editable = tmp_path / "environment"
    shutil.copytree(environment, editable, symlinks=True)
    shutil.rmtree(site_packages(editable) / "sparkinfer")
    checkout = Path(sparkinfer.__file__).parents[1]
    (site_packages(editable) / "editable.pth").write_text(str(checkout))
    assert make_archive(str(editable), str(tmp_path / "a.tar.gz")) == 1
    assert f"is a link to {checkout}/sparkinfer, which nodes do not have" in capsys.readouterr().err
    assert not (tmp_path / "a.tar.gz").exists()
