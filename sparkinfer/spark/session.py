"""A Spark session for the command line: its own, quiet, with the driver's interpreter.

In a notebook or under `spark-submit` a session, or at least its JVM, already exists; it is then
used as it is.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, EngineUnavailableError, SparkInferError
from sparkinfer.signals import handlers_kept
from sparkinfer.spark.classic import is_classic
from sparkinfer.spark.java import NO_PYSPARK, ensure_java
from sparkinfer.spark.jvm import in_session_of_its_own, is_submitted
from sparkinfer.spark.properties import SUBMIT_ARGS, properties_file
from sparkinfer.spark.remote import (
    FOR_WORKERS,
    active_session,
    address_of,
    is_same_server,
    plain,
    remote_address,
    start_remote,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JVM_OPTIONS = "spark.driver.defaultJavaOptions"
"""Come before `spark.driver.extraJavaOptions`, which thereby stays the user's."""

DEFAULT_CONF = {
    "spark.app.name": "sparkinfer",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # What the driver keeps of ended jobs; each chunk has a few.
    "spark.ui.retainedJobs": "50",
    "spark.ui.retainedStages": "50",
    "spark.ui.retainedTasks": "1000",
    "spark.sql.ui.retainedExecutions": "20",
    "spark.python.worker.faulthandler.enabled": "true",
    **FOR_WORKERS,
}


def start_session(config: ScoringConfig) -> SparkSession:
    """Returns a session on the configured master, or the one that is already active.

    On Spark Connect, if the master or the environment names a server of that.

    Raises:
        EngineUnavailableError: pyspark or a Java that it supports is missing, or the master does
            not respond.
        ConfigError: a session on another master is active, or `spark-submit` was given one.
    """
    try:
        import pyspark.sql  # noqa: F401
    except ImportError:
        raise EngineUnavailableError(f"engine={config.engine!r}: {NO_PYSPARK}") from None
    active = active_session()
    if active is not None:
        _refuse_other_master(active, config.master)
        return active
    remote = remote_address(config.master)
    if remote is not None:
        return start_remote(remote, config.spark_conf, config.step_timeout_s)
    settings = dict(config.spark_conf)
    if config.master is not None:
        settings["spark.master"] = config.master
    try:
        with handlers_kept(), in_session_of_its_own():
            return _started(settings)
    except SparkInferError:
        raise
    except Exception as error:  # py4j's and Spark's errors have no common root
        raise EngineUnavailableError(
            f"no Spark session on master {config.master or 'of the environment'!r}: it does not "
            f"respond, or rejects a setting; check --master and spark_conf, and {log_file()} for "
            "Spark's own messages"
        ) from error


def _started(settings: dict[str, str]) -> SparkSession:
    from pyspark.sql import SparkSession

    if is_submitted():
        _refuse_second_master(settings.get("spark.master"))
    else:
        ensure_java()
        settings = {**DEFAULT_CONF, **settings}
        _start_jvm(settings)
    builder = SparkSession.builder
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def log_file() -> Path:
    """Returns the path of the file for Spark's own log lines."""
    return Path(tempfile.gettempdir()) / f"sparkinfer-spark-{os.getpid()}.log"


def _refuse_other_master(spark: SparkSession, master: str | None) -> None:
    if master is None:
        return
    if is_classic(spark):
        current = spark.conf.get("spark.master", None)
        is_other = current != master
    else:
        current = address_of(spark)
        is_other = not is_same_server(master, current)
    if is_other:
        raise ConfigError(
            f"master={plain(master)!r}: a Spark session on {current!r} is active; leave the option "
            "out or stop that session"
        )


def _refuse_second_master(master: str | None) -> None:
    """Raises ConfigError if `spark-submit` has another master, which ours would replace."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # type: ignore[attr-defined, unused-ignore]
    submitted = SparkConf().get("spark.master")
    if master is not None and submitted != master:
        raise ConfigError(
            f"master={master!r}: spark-submit runs this on {submitted!r}; leave the option out and "
            "give the master to spark-submit alone"
        )


def _start_jvm(settings: Mapping[str, str]) -> None:
    """Starts the JVM, unless there is one, with what takes effect only at its start."""
    from pyspark import SparkContext

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    if settings.get("spark.master", "").startswith("local"):
        # One process on one machine: it need not be reachable from elsewhere.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    if "log4j2.configurationFile" not in os.environ.get(SUBMIT_ARGS, ""):
        settings = {**settings, JVM_OPTIONS: _jvm_options(settings)}
    with properties_file(settings):
        # Without settings, which it would put into the command.
        SparkContext._ensure_initialized()  # type: ignore[attr-defined, unused-ignore]


def _jvm_options(settings: Mapping[str, str]) -> str:
    """Returns Java options that Spark puts before the user's; Spark logs to a file of its own."""
    logging = resources.files("sparkinfer.spark") / "log4j2.properties"
    options = (
        f"-Dlog4j2.configurationFile=file:{logging} -Dsparkinfer.log.file={log_file()} "
        "-Dlog4j2.disableJmx=true"
    )
    return f"{options} {settings.get(JVM_OPTIONS, '')}".strip()


def qualify(spark: SparkSession, path: str) -> str:
    """Returns a path without a scheme as Spark resolves it, if that is not a local path.

    Spark looks such a path up in its default file system (HDFS, DBFS), other programs on the local
    disk. Databricks' `/Volumes` is the same for both.
    """
    if ":" in path or path.startswith("/Volumes/"):
        return path
    try:
        jvm = spark._jvm
        hadoop = spark._jsc.hadoopConfiguration()  # type: ignore[attr-defined, unused-ignore]
        location = jvm.org.apache.hadoop.fs.Path(path)  # type: ignore[union-attr, unused-ignore]
        qualified = str(location.getFileSystem(hadoop).makeQualified(location).toString())
    except Exception:  # Spark Connect has no JVM to ask
        return path
    return path if qualified.startswith("file:") else qualified
