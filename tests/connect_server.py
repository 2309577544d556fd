"""A real Spark Connect server for tests: a process of its own, with a folder that only it sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tests.standalone_cluster import (
    CHECKOUT,
    LOOPBACK,
    POLL_S,
    SHORT_LIVED_JVM,
    end_group,
    spark_home,
)

PACKAGES = ("grpc", "grpc_status", "google.rpc")
"""Of pyspark's client; Spark 4.1 and newer need zstandard as well."""


def why_not() -> str | None:
    """Returns why there can be no server here, None if there can."""
    if find_spec("pyspark") is None:
        return "pyspark is not installed"
    if not list((spark_home() / "jars").glob("spark-connect_*.jar")):
        return "this pyspark carries no server of Spark Connect; Spark 4's does"
    needed = PACKAGES if version("pyspark").startswith("4.0.") else (*PACKAGES, "zstandard")
    missing = [name for name in needed if not _is_there(name)]
    return f"pyspark's client needs {', '.join(missing)}" if missing else None


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # what it is part of
        return False


def can_hide() -> bool:
    """Returns whether a process can have a folder that no other sees."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


class ConnectServer:
    """A server on `local[2]`.

    Args:
        work_dir: folder for its log and its files.
        own: a folder in whose place the server and its workers see another; None: there is none.
        timeout_s: limit for the start, in seconds.

    Attributes:
        address: `sc://host:port`, once it is started.
    """

    def __init__(self, work_dir: Path, own: Path | None = None, timeout_s: float = 90.0) -> None:
        self.address = ""
        self._work_dir = work_dir
        self._own = own
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ConnectServer:
        log = self._work_dir / "server.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._work_dir,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + self._timeout_s
        started = re.compile(r"Spark Connect server started at: \S+:(\d+)")
        while not (found := started.search(log.read_text(errors="replace"))):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"no server:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(POLL_S)
        self.address = f"sc://{LOOPBACK}:{found[1]}"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server, its workers included."""
        if self._process is not None:
            end_group(self._process)

    def _command(self) -> list[str]:
        conf = {
            "spark.connect.grpc.binding.address": LOOPBACK,
            "spark.connect.grpc.binding.port": "0",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "2",
            "spark.driver.host": LOOPBACK,
            "spark.driver.extraJavaOptions": SHORT_LIVED_JVM,
        }
        settings = [word for pair in conf.items() for word in ("--conf", "=".join(pair))]
        main = "org.apache.spark.sql.connect.service.SparkConnectServer"
        program = [str(spark_home() / "bin" / "spark-submit"), "--master", "local[2]"]
        program += ["--class", main, *settings, "spark-internal"]
        if self._own is None:
            return program
        hide = f'mount -t tmpfs none "{self._own}" && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", hide, "sh", *program]


def _environment() -> dict[str, str]:
    python_path = (str(CHECKOUT), os.environ.get("PYTHONPATH", ""))
    return os.environ | {
        "SPARK_HOME": str(spark_home()),
        "SPARK_LOCAL_IP": LOOPBACK,
        "PYTHONPATH": os.pathsep.join(path for path in python_path if path),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LAUNCHER_OPTS": SHORT_LIVED_JVM,
    }
