"""What a Spark error says, in one line."""

from __future__ import annotations

import re

_OUR_ERROR = re.compile(r"sparkinfer\.exceptions\.\w+: (.+)")
_PYTHON_ERROR = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(\S.*)")
"""A traceback's frames, which are indented, and the line after them."""


def explain(error: Exception) -> str:
    """Returns the one line of a Spark error that says what happened."""
    text = str(error)
    ours = _OUR_ERROR.findall(text)
    if ours:
        return str(ours[-1]).strip()
    python = _PYTHON_ERROR.findall(text)
    if python:
        return str(python[-1]).strip()
    caused = re.findall(r"Caused by: (.+)", text)
    return str(caused[-1] if caused else text).strip().split("\n", 1)[0]
