"""What the project tells people to install."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FROM_PYPI = re.compile(r"pip3? +install[^\n]*\bsparkinfer(?!\.egg|/|\*)")
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
