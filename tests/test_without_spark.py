"""What a Python without pyspark is told, tried where the import is blocked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCKED = (
    "import sys; sys.modules['pyspark'] = None\n"
    "from importlib import metadata, util\n"
    "real, find = metadata.version, util.find_spec\n"
    "def version(name):\n"
    "    if name == 'pyspark':\n"
    "        raise metadata.PackageNotFoundError(name)\n"
    "    return real(name)\n"
    "metadata.version = version\n"
    "util.find_spec = lambda name, *rest: None if name == 'pyspark' else find(name, *rest)\n"
    "from sparkinfer.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_demo_runs_on_the_local_engine(tmp_path: Path) -> None:
    done = cli("demo", "--engine", "local", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_an_engine_on_spark_says_what_to_do(tmp_path: Path) -> None:
    done = cli("demo", "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert (
        "engine='pandas_udf': pyspark is not installed in this Python; run pip install"
        in (done.stderr.splitlines()[-1])
    )
    assert "Traceback" not in done.stderr


def test_the_doctor_examines_the_local_engine(tmp_path: Path) -> None:
    done = cli("doctor", "--engine", "local", "--acceleration", "none")
    assert done.returncode == 0, done.stdout
    assert "pyspark" not in next(line for line in done.stdout.splitlines() if "packages" in line)


def test_the_doctor_names_the_package_that_an_engine_on_spark_lacks() -> None:
    done = cli("doctor", "--acceleration", "none")
    assert done.returncode == 1
    assert "pyspark is not installed" in done.stdout
    assert "pip install 'pyspark>=3.5,<5'" in done.stdout
