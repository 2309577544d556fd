"""What a Spark error says, in one line."""

from __future__ import annotations

import re

_OUR_ERROR = re.compile(
    r"(?:sparkinfer\.exceptions\.\w+|Python worker exited unexpectedly \(crashed\)): (.+)"
)
"""Ours, or the first line of what a worker left behind when it ended: see `worker_end`."""

_PYTHON_ERROR = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(\S.*)")
"""A traceback's frames, which are indented, and the line after them."""

_DEAD_WORKER = re.compile(r"Python worker exited unexpectedly[^\n]*")

_CUT_WORKER = re.compile(r"Connection reset(?=[\s\S]*PythonRunner)")
"""What Spark sees of a worker that is killed while it is written to."""


def explain(error: Exception) -> str:
    """Returns the one line of a Spark error that says what happened."""
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
