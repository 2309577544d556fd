"""Finds a Python of a version: on PATH, under its own name, or among those of pyenv.

Usage: python scripts/find_python.py 3.12
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Debian has a Python without the modules that environments are made with.
LOOK = "import ensurepip, sys, venv; print('{}.{}'.format(*sys.version_info))"


def find(version: str) -> str | None:
    """Returns the path of one that makes virtual environments, None if there is none."""
    return next((python for python in candidates(version) if is_of(python, version)), None)


def candidates(version: str) -> Iterator[str]:
    """Yields paths of what may be one; those of pyenv's shims run only if it is chosen there."""
    for name in (f"python{version}", "python3", "python"):
        if found := shutil.which(name):
            yield found
    root = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    yield from map(str, sorted(root.glob(f"versions/{version}.*/bin/python")))


def is_of(python: str, version: str) -> bool:
    """Returns whether a program is a Python of that version."""
    try:
        done = subprocess.run([python, "-c", LOOK], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.stdout.strip() == version


def main(version: str) -> int:
    """Prints the path; returns the exit status."""
    python = find(version)
    if python is None:
        print(f"no Python {version} with venv on PATH or of pyenv", file=sys.stderr)
        return 1
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
