"""What a Python without an extra is told: the extra, and the command that brings it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.made_up_engine import write_input

BLOCKED = ("chromadb", "deepspeed", "deltalake", "horovod", "mlflow", "pyspark", "s3fs")

# One process for all: most of the time goes into what the command imports.
RUN_ALL = """
import contextlib, importlib.util, io, json, sys
from importlib import metadata

blocked, commands = json.loads(sys.argv[1])
version, find = metadata.version, importlib.util.find_spec

def installed_version(name):
    if name in blocked:
        raise metadata.PackageNotFoundError(name)
    return version(name)

sys.modules.update(dict.fromkeys(blocked))
metadata.version = installed_version
importlib.util.find_spec = lambda name, *rest: None if name in blocked else find(name, *rest)
from sparkinfer.cli import main

said = {}
for name, arguments in commands.items():
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(arguments)
    said[name] = (code, errors.getvalue())
print(json.dumps(said))
"""

ASKED = {
    "spark": ["--engine", "pandas_udf"],
    "deepspeed": ["--acceleration", "deepspeed"],
    "delta": ["--output-delta", "TABLE"],
    "mlflow": ["--set", "model=models:/sentiment/1"],
    "s3": ["--output", "s3://bucket/out"],
    "vectordb": ["--vector-store", "chroma:STORE#documents", "--task", "feature-extraction"],
}
COMMANDS = {
    "spark": "pip install 'pyspark>=3.5,<5' (the extra [spark])",
    "deepspeed": "pip install deepspeed (the extra [deepspeed])",
    "delta": "pip install deltalake (the extra [delta])",
    "mlflow": "pip install mlflow (the extra [mlflow])",
    "s3": "pip install s3fs==",
    "vectordb": "(the extra [vectordb])",
}


@pytest.fixture(scope="module")
def said(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    folder = tmp_path_factory.mktemp("extras")
    source = write_input(folder / "in", files=1, row_groups=1)
    usual = ["score", "--input", str(source), "--input-col", "text", "--engine", "local"]
    usual += ["--model", str(classifier), "--output", str(folder / "out")]
    usual += ["--progress", "none"]  # a slow machine has time for lines about its phases
    commands = {extra: [*usual, *asked] for extra, asked in ASKED.items()}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps([BLOCKED, commands])],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("extra", sorted(ASKED))
def test_one_line_names_the_extra_and_the_command(
    said: dict[str, tuple[int, str]], extra: str
) -> None:
    code, line = said[extra]
    assert code == 2, line
    assert line.startswith("sparkinfer: error: ")
    assert line.count("\n") == 1
    assert COMMANDS[extra] in line
    assert f"(the extra [{extra}])" in line
