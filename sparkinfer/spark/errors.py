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


def installation_problem(error: Exception) -> str | None:
    """Returns what is wrong with the workers' Python and what to do, None if nothing is."""
    text = str(error)
    if other := _OTHER_PYTHON.search(text):
        workers, driver = ".".join(re.findall(r"\d+", other[1])), other[2]
        return (
            f"the driver runs Python {driver}, the workers {workers}; set PYSPARK_PYTHON, before "
            f"the session starts, to a Python {driver} that every node has"
        )
    if program := _NO_PYTHON.search(text):
        return (
            f"the nodes have no Python {program[1]!r}; set spark.pyspark.python to one that every "
            f"node has, or {PACKED}"
        )
    python = _PYTHON_ERROR.findall(text)
    if python and (missing := _MISSING_MODULE.search(python[-1])):
        name = missing[1].partition(".")[0]
        what = "this package" if name == "sparkinfer" else "the driver's packages"
        return (
            f"the workers' Python has no module {name!r}; install {what} on every node, set "
            f"PYSPARK_PYTHON to a Python that has it, or {PACKED}"
        )
    return None


def explain(error: Exception) -> str:
    """Returns the line of a Spark error that says what happened."""
    if problem := installation_problem(error):
        return problem
    text = str(error)
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
    caused = re.findall(r"Caused by: (.+)", text)
    return str(caused[-1] if caused else text).strip().split("\n", 1)[0]
