"""Condenses a Spark error into one line."""

from __future__ import annotations

import re

_OUR_ERROR = re.compile(
    r"(?:sparkinfer\.exceptions\.\w+|Python worker exited unexpectedly \(crashed\)): (.+)"
)
"""Our own errors, or the first line of what a worker left when it ended: see `worker_end`."""

_PYTHON_ERROR = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(\S.*)")
"""A traceback's frames, which are indented, and the line after them."""

_DEAD_WORKER = re.compile(r"Python worker exited unexpectedly[^\n]*")

_CUT_WORKER = re.compile(r"Connection reset(?=[\s\S]*PythonRunner)")
"""What Spark sees of a worker that is killed while Spark writes to it."""


_OTHER_PYTHON = re.compile(
    r"Python in worker has different version:? (\(\d+, \d+\)|\d+\.\d+) "
    r"than that in driver:? (\d+\.\d+)"
)

_NO_PYTHON = re.compile(r'Cannot run program "([^"]+)"(?=[\s\S]*PythonWorkerFactory)')
"""What Java says of a program that is not there, where Spark starts Python workers."""

PACKED = "send one along by spark-submit --archives (docs/spark_submit.md)"

_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'\s*$")

_SQL_STATE = re.compile(r"\s*SQLSTATE: \w+\s*$")
"""What Spark Connect puts after a message, a worker's traceback among them."""

_OF_GRPC = re.compile(r'details = "(.+?)"\n')
"""What happened to the connection with a server, in an error of gRPC."""


def installation_problem(error: Exception) -> str | None:
    """Returns what is wrong with the workers' Python and what to do, None if nothing is."""
    text, on_server = _text_of(error), _is_of_connect(error)
    if other := _OTHER_PYTHON.search(text):
        return _other_python(".".join(re.findall(r"\d+", other[1])), other[2], on_server)
    if program := _NO_PYTHON.search(text):
        return (
            f"the nodes have no Python {program[1]!r}; set spark.pyspark.python to one that every "
            f"node has, or {PACKED}"
        )
    python = _PYTHON_ERROR.findall(text)
    if python and (missing := _MISSING_MODULE.search(python[-1])):
        return _no_module(missing[1].partition(".")[0], on_server)
    return None


def _other_python(workers: str, driver: str, on_server: bool) -> str:
    if on_server:
        return (
            f"this process runs Python {driver}, the workers of the Spark Connect server "
            f"{workers}; run it with Python {workers}, or have the server's workers use "
            f"{driver} by PYSPARK_PYTHON where it is started"
        )
    return (
        f"the driver runs Python {driver}, the workers {workers}; set PYSPARK_PYTHON, before "
        f"the session starts, to a Python {driver} that every node has"
    )


def _no_module(name: str, on_server: bool) -> str:
    what = "this package" if name == "sparkinfer" else "the driver's packages"
    if on_server:
        return (
            f"the workers' Python has no module {name!r}; install {what} where the Spark "
            "Connect server's workers run, or in the environment of a serverless session"
        )
    return (
        f"the workers' Python has no module {name!r}; install {what} on every node, set "
        f"PYSPARK_PYTHON to a Python that has it, or {PACKED}"
    )


def explain(error: Exception) -> str:
    """Returns the line of a Spark error that says what happened."""
    if problem := installation_problem(error):
        return problem
    text = _text_of(error)
    ours = _OUR_ERROR.findall(text)
    if ours:
        return str(ours[-1]).strip()
    python = _PYTHON_ERROR.findall(text)
    if python:
        return str(python[-1]).strip()
    dead = _DEAD_WORKER.findall(text)
    if dead:
        return str(dead[-1]).strip(": ")
    if _CUT_WORKER.search(text):
        return "Python worker exited unexpectedly (its connection was reset)"
    if lost := _OF_GRPC.search(text):
        return f"the Spark Connect server does not answer: {lost[1]}"
    caused = re.findall(r"Caused by: (.+)", text)
    return str(caused[-1] if caused else text).strip().split("\n", 1)[0]


def _is_of_connect(error: Exception) -> bool:
    return any("connect" in kind.__module__.split(".") for kind in type(error).__mro__)


def _text_of(error: Exception) -> str:
    """Returns an error's text; without the server's stack, in which nothing of a worker is."""
    text = str(error)
    if not _is_of_connect(error):
        return text
    return _SQL_STATE.sub("", text.partition("\n\nJVM stacktrace:\n")[0])
