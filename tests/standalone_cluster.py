"""A real Spark standalone cluster for tests: master and workers, each its own process.

A JVM driver holds one SparkContext, and the test process has one on `local[2]`; what runs on the
cluster therefore has its driver in a process of its own: see `run_driver`.
"""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
CHECKOUT = Path(__file__).resolve().parent.parent
# The JVMs of a test live for seconds: the quick compiler and the simple collector start sooner.
SHORT_LIVED_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
POLL_S = 0.05


@dataclass(frozen=True)
class Host:
    """Where a worker of the cluster runs.

    Attributes:
        address: at which the others reach it.
        namespace: network namespace that stands for a machine of its own, None for this machine.
    """

    address: str = LOOPBACK
    namespace: str | None = None

    def command(self, program: Sequence[str]) -> list[str]:
        """Returns the command that runs a program there."""
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        return [*inside, *program]


class StandaloneCluster:
    """Spark's standalone master with workers, from the pip package of pyspark.

    Args:
        work_dir: folder for logs and the workers' files.
        num_workers: worker processes.
        cores: cores that each worker offers.
        memory: memory that each worker offers, in Spark's notation.
        gpu_addresses: for each worker the addresses of the GPUs that its discovery script reports.
            The GPUs need not exist; only sessions that ask for GPUs get any.
        hosts: one for each worker; this machine's loopback for all if not given.
        address: at which the workers reach the master and drivers.
        worker_environment: variables of workers and executors, in place of this process's.
        timeout_s: limit for the start, in seconds.
    """

    def __init__(
        self,
        work_dir: Path,
        *,
        num_workers: int = 2,
        cores: int = 1,
        memory: str = "1g",
        gpu_addresses: Sequence[Sequence[str]] = (),
        hosts: Sequence[Host] = (),
        address: str = LOOPBACK,
        worker_environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self.work_dir = work_dir
        self.num_workers = num_workers
        self.cores = cores
        self.memory = memory
        self.gpu_addresses = gpu_addresses
        self.address = address
        self._worker_environment = worker_environment
        self._hosts = hosts or [Host()] * num_workers
        self.url = ""
        self._timeout_s = timeout_s
        self._web_port = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._workers: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> StandaloneCluster:
        try:
            self._start_master()
            for number in range(self.num_workers):
                self._start_worker(number)
            self._wait_until(lambda: self.state()["aliveworkers"] == self.num_workers, "workers")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """The process ids of the master and the workers."""
        return [process.pid for process in self._processes]

    def state(self) -> dict[str, Any]:
        """Returns what the master reports about workers and applications."""
        connection = http.client.HTTPConnection(self.address, self._web_port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/json/")
            with connection.getresponse() as response:
                return json.loads(response.read())

    def add_worker(self) -> None:
        """Starts one more worker, on this machine's loopback, and waits until it is there."""
        alive = self.state()["aliveworkers"]
        self._start_worker(len(self._workers))
        self._wait_until(lambda: self.state()["aliveworkers"] == alive + 1, "another worker")

    def kill_worker(self, number: int) -> None:
        """Kills a worker and its executors, as a node is lost, and waits until that is known.

        Args:
            number: of the worker, from 0 in the order of their start.
        """
        alive = self.state()["aliveworkers"]
        process = self._workers[number]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._processes.remove(process)
        self._wait_until(lambda: self.state()["aliveworkers"] == alive - 1, "the loss of a worker")

    def wait_until_idle(self) -> None:
        """Returns when no application holds a core any more."""
        self._wait_until(lambda: self.state()["coresused"] == 0, "the last application's executors")

    def stop(self) -> None:
        """Ends every process that was started, executors included, and waits for it."""
        for process in reversed(self._processes):
            end_group(process)
        self._processes.clear()

    def _start_master(self) -> None:
        log = self._start(
            "master",
            "org.apache.spark.deploy.master.Master",
            ("--host", self.address, "--port", "0", "--webui-port", "0"),
            {"spark.master.rest.enabled": "false"},
            Host(self.address),
        )
        self._wait_until(lambda: "New state: ALIVE" in _read(log), "the master")
        self.url = _find(r"Starting Spark master at (spark://\S+)", _read(log))
        self._web_port = int(_find(r"MasterWebUI: .* http://\S+:(\d+)", _read(log)))

    def _start_worker(self, number: int) -> None:
        folder = self.work_dir / f"worker-{number}"
        host = self._hosts[number] if number < len(self._hosts) else Host()
        arguments = ("--host", host.address, "--webui-port", "0", "--cores", str(self.cores))
        arguments += ("--memory", self.memory, "--work-dir", str(folder), self.url)
        conf = {}
        if self.gpu_addresses:
            addresses = list(self.gpu_addresses[number])
            script = self.work_dir / f"worker-{number}-gpus.sh"
            reply = json.dumps({"name": "gpu", "addresses": addresses})
            script.write_text(f"#!/bin/sh\necho '{reply}'\n")
            script.chmod(0o755)
            conf = {
                "spark.worker.resource.gpu.amount": str(len(addresses)),
                "spark.worker.resource.gpu.discoveryScript": str(script),
            }
        main_class = "org.apache.spark.deploy.worker.Worker"
        name, environment = f"worker-{number}", self._worker_environment
        self._start(name, main_class, arguments, conf, host, environment)
        self._workers[number] = self._processes[-1]

    def _start(
        self,
        name: str,
        main_class: str,
        arguments: Sequence[str],
        conf: Mapping[str, str],
        host: Host,
        environment: Mapping[str, str] | None = None,
    ) -> Path:
        """Starts a daemon and returns its log file."""
        properties = self.work_dir / f"{name}.conf"
        properties.write_text("".join(f"{key} {value}\n" for key, value in conf.items()))
        log = self.work_dir / f"{name}.log"
        home = spark_home()
        own = _environment(host.address) if environment is None else dict(environment)
        variables = own | {
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_DIRS": str(self.work_dir),
            "SPARK_DAEMON_JAVA_OPTS": SHORT_LIVED_JVM,
            "SPARK_LAUNCHER_OPTS": SHORT_LIVED_JVM,
        }
        program = [str(home / "bin" / "spark-class"), main_class]
        with log.open("wb") as output:
            process = subprocess.Popen(
                host.command([*program, "--properties-file", str(properties), *arguments]),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return log

    def _wait_until(self, is_true: Callable[[], bool], awaited: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not is_true():
            ended = [process.args for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                problem = f"ended: {ended}" if ended else f"not there in {self._timeout_s} s"
                raise RuntimeError(f"{awaited}: {problem}\n{self._logs()}")
            time.sleep(POLL_S)

    def _logs(self) -> str:
        logs = sorted(self.work_dir.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{_read(log)[-4000:]}" for log in logs)


def run_driver(
    cluster: StandaloneCluster | str,
    function: Callable[..., Any],
    args: Mapping[str, Any] | None = None,
    conf: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> Any:
    """Returns `function(spark, **args)`, run by a driver process with its own session.

    Args:
        cluster: the cluster, or any Spark master URL.
        function: a function whose source stands alone: what it needs it imports itself. The value
            that it returns is passed on as JSON.
        args: its keyword arguments, as JSON can hold them.
        conf: Spark settings of the session.
        timeout_s: limit for the whole driver, in seconds.
    """
    if isinstance(cluster, StandaloneCluster):
        cluster.wait_until_idle()
    master = cluster.url if isinstance(cluster, StandaloneCluster) else cluster
    address = cluster.address if isinstance(cluster, StandaloneCluster) else LOOPBACK
    settings = DRIVER_CONF | {"spark.driver.host": address} | dict(conf or {})
    job = {"master": master, "conf": settings, "args": dict(args or {})}
    source = textwrap.dedent(inspect.getsource(function))
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "driver.py"
        script.write_text(DRIVER.replace("NAME", function.__name__).replace("SOURCE", source))
        command = [sys.executable, str(script), json.dumps(job)]
        result = _run(command, folder, timeout_s, _environment(address))
    return json.loads(result)


DRIVER_CONF = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.memory": "512m",
    "spark.driver.extraJavaOptions": SHORT_LIVED_JVM,
    "spark.executor.memory": "512m",
    "spark.executor.extraJavaOptions": SHORT_LIVED_JVM,
    "spark.sql.shuffle.partitions": "2",
}

DRIVER = """
SOURCE

if __name__ == "__main__":
    import json
    import sys

    from pyspark.sql import SparkSession

    job = json.loads(sys.argv[1])
    builder = SparkSession.builder.master(job["master"])
    for key, value in job["conf"].items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    try:
        result = NAME(spark, **job["args"])
    finally:
        spark.stop()
    print(json.dumps(result))
"""


def _run(command: Sequence[str], cwd: str, timeout_s: float, environment: Mapping[str, str]) -> str:
    """Returns the last line that a command prints; raises RuntimeError if it fails."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except BaseException:
        end_group(process)
        process.communicate()
        raise
    if process.returncode != 0:
        raise RuntimeError(f"the driver ended with {process.returncode}\n{output}\n{errors}")
    return output.strip().rsplit("\n", 1)[-1]


def _environment(address: str) -> dict[str, str]:
    """Returns the environment of a daemon or driver at an address."""
    python_path = (str(CHECKOUT), os.environ.get("PYTHONPATH", ""))
    return os.environ | {
        "SPARK_LOCAL_IP": address,
        "PYTHONPATH": os.pathsep.join(path for path in python_path if path),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }


def spark_home() -> Path:
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise RuntimeError("pyspark is not installed in the interpreter that runs the tests")
    return Path(spec.origin).parent


def end_group(process: subprocess.Popen[Any]) -> None:
    """Ends a process that leads a group, and the group: politely, then not."""
    for sign, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"no {pattern!r} in the log:\n{text}")
    return match[1]
