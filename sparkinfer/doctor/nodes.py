"""What the machines of a cluster have, asked without needing sparkinfer there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparkinfer.doctor.findings import Outcome, Status
from sparkinfer.spark.job_threads import watched_job

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

DISTRIBUTION = "sparkinfer-spark"
"""This package's name for pip."""
PACKAGES = ("sparkinfer", "torch", "transformers", "pyarrow", "pandas", "numpy")
"""What executors always need."""
EXTRAS = (
    *("deepspeed", "accelerate", "vllm", "openvino", "nncf", "onnxruntime", "onnx"),
    *("horovod", "petastorm"),
)
"""What executors need if the driver has it."""

STUCK_BUILD_S = 900
"""Age at which a build lock is stale: DeepSpeed's builds take 100 to 170 s."""


@dataclass(frozen=True)
class NodeReport:
    """What one Python process sees on its machine.

    Attributes:
        host: name of the machine.
        python: full version.
        packages: version by name; `?` for one without metadata, None for a missing one.
        free_bytes: by folder for temporary files.
        stuck_locks: stale lock files of torch extension builds.
    """

    host: str
    python: str
    packages: Mapping[str, str | None]
    free_bytes: Mapping[str, int]
    stuck_locks: Sequence[str]


def node_reporter(names: Sequence[str], stuck_build_s: float) -> Callable[[], str]:
    """Returns a function that returns a `NodeReport` as JSON.

    It is sent to executors as code and needs only Python there: that sparkinfer is missing is one
    of the things it must be able to report.
    """

    def report() -> str:
        import importlib.util
        import json
        import os
        import platform
        import shutil
        import socket
        import tempfile
        import time
        from importlib import metadata
        from pathlib import Path

        def version(name: str) -> str | None:
            try:
                return metadata.version(DISTRIBUTION if name == "sparkinfer" else name)
            except metadata.PackageNotFoundError:
                return "?" if importlib.util.find_spec(name) else None

        folders = {tempfile.gettempdir(), *os.environ.get("SPARK_LOCAL_DIRS", "").split(",")}
        known = os.environ.get("TORCH_EXTENSIONS_DIR")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        builds = Path(known) if known else cache / "torch_extensions"
        latest = time.time() - stuck_build_s
        locks = [*builds.glob("deepspeed_*/lock"), *builds.glob("*/deepspeed_*/lock")]
        return json.dumps(
            {
                "host": socket.gethostname(),
                "python": platform.python_version(),
                "packages": {name: version(name) for name in names},
                "free_bytes": {
                    folder: shutil.disk_usage(folder).free
                    for folder in folders
                    if folder and Path(folder).is_dir()
                },
                "stuck_locks": [str(lock) for lock in locks if lock.stat().st_mtime < latest],
            }
        )

    return report


def decode(report: str) -> NodeReport:
    """Returns the report that a reporter wrote as JSON."""
    return NodeReport(**json.loads(report))


def ask_executors(spark: SparkSession, tasks: int, question: Callable[[], str]) -> list[str]:
    """Returns the answers of this many tasks; nothing of sparkinfer is imported there."""

    def answer(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for _ in batches:
            yield pa.RecordBatch.from_arrays([pa.array([question()])], names=["answer"])

    asked = spark.range(0, tasks, 1, tasks).mapInArrow(answer, "answer string")
    rows = watched_job(spark, asked.collect, "executors that tell what they have")
    return [row["answer"] for row in rows]


def node_problems(driver: NodeReport, nodes: Iterable[NodeReport]) -> list[Outcome]:
    """Returns where executors have a different Python or different packages than the driver."""
    problems = []
    for node in {node.host: node for node in nodes}.values():
        here, there = (report.python.rsplit(".", 1)[0] for report in (driver, node))
        if here != there:
            what = f"{node.host}: Python {node.python}, the driver has {driver.python}"
            problems.append(Outcome("error", what, "set PYSPARK_PYTHON to the same Python"))
        for name, version in driver.packages.items():
            theirs = node.packages.get(name)
            if theirs == version or "?" in (theirs, version):
                continue
            status: Status = "error" if theirs is None and name in PACKAGES else "warning"
            what = f"{node.host}: {name} {theirs or 'not installed'}, the driver has {version}"
            advice = "install the same versions on every node"
            problems.append(Outcome(status, what, advice))
    return [*problems, *lock_problems(nodes)]


def lock_problems(nodes: Iterable[NodeReport]) -> list[Outcome]:
    """Returns a warning for each lock that the next build on its node would wait for."""
    locks = {f"{node.host}: {lock}" for node in nodes for lock in node.stuck_locks}
    return [
        Outcome(
            "warning",
            f"{lock} is left over from a killed build; the next one would wait for it forever",
            "remove that file",
        )
        for lock in sorted(locks)
    ]
