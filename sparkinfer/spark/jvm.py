"""The JVM that pyspark starts: kept from signals meant for the command, and its death reported.

A signal to the command's process group, from a terminal or a scheduler, would end the JVM at once,
and the command could cancel nothing any more. In a session of its own the JVM does not get it. It
ends with the command anyway, since it then reads the end of the pipe between the two.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sparkinfer.exceptions import JobError
from sparkinfer.logs import get_logger
from sparkinfer.signals import GO_ON

logger = get_logger(__name__)

_jvm: subprocess.Popen[Any] | None = None
"""The one that this process has started; pyspark keeps one at most."""

SEEN_DEAD_S = 0.5
"""Time from a connection that breaks to the end of the process that had it."""


@contextmanager
def in_session_of_its_own() -> Iterator[None]:
    """Has a JVM that pyspark starts meanwhile get a session of its own; ends it if that fails."""
    from pyspark import java_gateway

    pyspark: Any = java_gateway
    original = pyspark.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
        global _jvm
        _jvm = original(command, start_new_session=True, **options)
        return _jvm

    pyspark.Popen = start
    try:
        yield
        _hush_accumulators()
    except BaseException:
        _give_up()
        raise
    finally:
        pyspark.Popen = original


def _hush_accumulators() -> None:
    """Keeps the traceback of a thread of pyspark, which reads from the JVM, out of the output."""
    from pyspark import SparkContext

    server: Any = getattr(SparkContext._active_spark_context, "_accumulatorServer", None)
    if server is not None:
        server.handle_error = lambda *_: logger.debug("pyspark's accumulators", exc_info=True)


def _give_up() -> None:
    """Ends a JVM that has not come up: it would print Java's complaints about its lost command."""
    global _jvm
    if _jvm is None or _killed_by(_jvm.poll() or 0):  # that is not the fault of a setting
        return
    with suppress(ProcessLookupError):
        os.killpg(_jvm.pid, signal.SIGKILL)
    _jvm.wait()
    _jvm = None


@contextmanager
def death_reported() -> Iterator[None]:
    """Raises JobError in place of whatever the death of the JVM brings about."""
    try:
        yield
    except Exception as error:  # py4j's errors have no common root
        problem = _death()
        if problem is None:
            raise
        raise JobError(problem) from error


def is_submitted() -> bool:
    """Returns whether `spark-submit` made the JVM, and started this process from it."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _death() -> str | None:
    """Returns how the JVM ended and what to do, None if it runs or is of a notebook."""
    if is_submitted():
        return None if _application_runs() else f"spark-submit has ended this application; {GO_ON}"
    if _jvm is None:
        return None
    try:
        code = _jvm.wait(SEEN_DEAD_S)
    except subprocess.TimeoutExpired:
        return None
    number = _killed_by(code)
    how = f"was killed by signal {number}" if number else f"ended with exit code {code}"
    why = ", perhaps because this machine's memory was used up" if number == signal.SIGKILL else ""
    return f"Spark's JVM (process {_jvm.pid}) {how}{why}; {GO_ON}"


def _application_runs() -> bool:
    """Returns whether the JVM answers that its context is not stopped, or has none yet."""
    from pyspark import SparkContext

    context: Any = SparkContext._active_spark_context
    try:
        return context is None or not context._jsc.sc().isStopped()
    except Exception:  # py4j's errors have no common root
        return False


def _killed_by(code: int) -> int:
    """Returns the number of the signal that an exit code tells of, 0 if of none.

    Spark's script passes on, as a shell does, that the Java was killed that it asks first.
    """
    return -code if code < 0 else max(code - 128, 0)
