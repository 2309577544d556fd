"""The pages that are made of the code are what the code says now."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "make_reference.py"


def test_the_generated_pages_are_as_the_code_says() -> None:
    """In a process of its own: tests put entries of theirs into the registries of this one."""
    command = [sys.executable, str(SCRIPT), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_picture_has_every_package() -> None:
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text("utf-8")
    [title] = re.findall("<title>(.*)</title>", picture)
    packages = {path.parent.name for path in (ROOT / "sparkinfer").glob("*/__init__.py")} - {"demo"}
    assert packages <= set(re.findall(r"\w+", title))
