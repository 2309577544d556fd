"""Wheel and sdist as users get them: built from what is checked in, run from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sparkinfer
from tests.installed import build_wheel, copy_of_source, make_environment

PACKAGE = Path(sparkinfer.__file__).parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_source(tmp_path_factory.mktemp("package") / "source")


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    command = [sys.executable, "setup.py", "--quiet", "sdist"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [sdist] = (source / "dist").glob("*.tar.gz")
    return sdist


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel that is built of the sdist, which thereby has what building needs."""
    return build_wheel(sdist, sdist.parent / "wheels")


def test_the_wheel_of_the_sdist_has_every_file_of_the_package(wheel: Path) -> None:
    there = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    here = {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert there == {name for name in here if "__pycache__" not in name}


def test_the_sdist_has_the_files_that_builds_read(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"setup.py", "pyproject.toml", "README.md"} <= names


def test_the_installed_wheel_runs_the_demo_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "environment", wheel)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = [environment / "bin" / "python", "-c", "import sparkinfer; print(sparkinfer.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert found.stdout.startswith(str(environment))
    done = subprocess.run(
        [environment / "bin" / "sparkinfer", "demo", "--engine", "local", "--output", "out"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()
