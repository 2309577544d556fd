"""What the project tells people to install."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FROM_PYPI = re.compile(r"pip3? +install[^\n]*\bsparkinfer(?!\.egg|/|\*)")
EXTRAS_OF = re.compile(
    r"[' ]\.\[([a-z0-9]+(?:(?:,|\$\(COMMA\))[a-z0-9]+)*)\]|\bextra \[(\w+)\]|\(extra `(\w+)`\)"
)
SELF = Path(__file__).name


def texts() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no git checkout")
    paths = (ROOT / name for name in listed.stdout.splitlines())
    return [path for path in paths if path.is_file() and path.name != SELF]


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("pip install sparkinfer", True),
        ("pip install 'sparkinfer[mlflow]'", True),
        ("pip install -U sparkinfer-spark", True),
        ("pip install '.[mlflow]'", False),
        ("pip install mlflow", False),
    ],
)
def test_the_pattern_knows_a_line_that_installs_from_pypi(text: str, is_refused: bool) -> None:
    assert bool(FROM_PYPI.search(text)) is is_refused


def test_nobody_is_told_to_install_the_package_from_pypi() -> None:
    """The name `sparkinfer` there is of somebody else's package."""
    wrong = []
    for path in texts():
        # A string that goes on in the next line, or a line that does.
        text = re.sub(r"\"\s*\n\s*f?\"|\n\s*", " ", path.read_text("utf-8", errors="ignore"))
        wrong += [
            f"{path.name}: {found}"
            for found in re.findall(r"pip3? +install.{0,40}", text)
            if FROM_PYPI.search(found)
        ]
    assert not wrong


def test_every_extra_that_is_named_is_one() -> None:
    """Pip only warns of an extra that a package does not have, and installs without it."""
    has = set(metadata.metadata("sparkinfer-spark").get_all("Provides-Extra") or [])
    named = {
        (extra.strip(), path.name)
        for path in texts()
        for extras in EXTRAS_OF.findall(path.read_text("utf-8", errors="ignore"))
        for extra in re.split(r",|\$\(COMMA\)", next(one for one in extras if one))
    }
    assert {name for _, name in named} >= {"Makefile", "README.md", "onnxruntime.py"}
    assert not [(extra, name) for extra, name in named if extra not in has]
