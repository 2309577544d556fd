"""What the README and docs/ tell people to type: run, or looked at; see `tests.docs_blocks`.

Commands are run by this process, each page in a folder with the models and rows that stand for the
reader's. What needs Spark is run by one further process.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import sparkinfer
from sparkinfer.cli import _config, main
from sparkinfer.config import ScoringConfig
from sparkinfer.doctor.case import ExaminedConfig
from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.tasks import TASKS
from sparkinfer.plan.processors import PROCESSORS
from sparkinfer.sinks.vectors import VECTOR_STORES
from sparkinfer.validation import option_names
from tests.docs_blocks import (
    PYTHON,
    ROOT,
    SHELL,
    YAML,
    Block,
    arguments_in,
    blocks_of,
    lines_of,
    pages,
)
from tests.sentence_models import add_sentence_files, make_encoder, pooling
from tests.tiny_generators import make_generator
from tests.tiny_models import make_tagger

BLOCKS = [block for path in pages() for block in blocks_of(path)]
RUN = [block for block in BLOCKS if block.kind in ("run", "file") and block.value != "spark"]
ON_SPARK = [block for block in BLOCKS if block.kind == "run" and block.value == "spark"]
MAKE = re.compile(r"(?:^|`)make ([a-z][a-z0-9-]*)", re.M)
ROWS = 24
EXIT_CODE = "exit code "


def pages_of(blocks: list[Block]) -> list[str]:
    return list(dict.fromkeys(block.page for block in blocks if block.kind == "run"))


# What is looked at


def test_every_block_that_can_be_run_says_what_becomes_of_it() -> None:
    assert not [str(block) for block in BLOCKS if block.wants_mark and not block.kind]
    assert all(block.value for block in BLOCKS if block.kind in ("file", "tested", "needs"))


def test_what_another_test_runs_is_known_to_it() -> None:
    tested = [block for block in BLOCKS if block.kind == "tested"]
    assert tested
    for block in tested:
        assert Path(block.page).name in (ROOT / block.value).read_text("utf-8"), str(block)


@functools.cache
def command_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    caught: list[argparse.ArgumentParser] = []

    def stop(self: argparse.ArgumentParser, *_: Any) -> None:
        caught.append(self)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        main([])
    return caught[0]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in SHELL], ids=str)
def test_the_options_of_commands_are_known(block: Block) -> None:
    commands = [found for line in lines_of(block.text) if (found := arguments_in(line)) is not None]
    for arguments in commands:
        options = command_parser().parse_args(arguments)  # ends the process, were one unknown
        if arguments[0] in ("score", "tune", "doctor") and options.config is None:
            kind = ExaminedConfig if arguments[0] == "doctor" else ScoringConfig
            _config(options, kind)


def test_the_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for path in pages():
        for target in MAKE.findall(path.read_text("utf-8")):
            assert re.search(rf"^{target}:", makefile, re.M), f"{path.name}: make {target}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in PYTHON], ids=str)
def test_python_uses_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text)
    known: dict[str, Any] = {"sparkinfer": sparkinfer}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparkinfer"):
            home = importlib.import_module(str(node.module))
            for alias in node.names:
                known[alias.asname or alias.name] = attribute(home, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_of_package(node):
            attribute(sparkinfer, node.attr)
        if isinstance(node, ast.Call) and (called := what_is_called(node.func, known)) is not None:
            refuse_unknown_arguments(called, [one.arg for one in node.keywords if one.arg])


def attribute(home: Any, name: str) -> Any:
    """Returns what a module has by a name, which may be a module below it."""
    if not hasattr(home, name):
        return importlib.import_module(f"{home.__name__}.{name}")
    return getattr(home, name)


def is_of_package(node: ast.expr) -> bool:
    """Returns whether an expression is `sparkinfer.NAME`."""
    is_one = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return is_one and node.value.id == "sparkinfer"  # type: ignore[attr-defined]


def what_is_called(function: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(function, ast.Attribute) and is_of_package(function):
        return getattr(sparkinfer, function.attr)
    return known.get(function.id) if isinstance(function, ast.Name) else None


def refuse_unknown_arguments(called: Any, names: list[str]) -> None:
    parameters = inspect.signature(called).parameters
    takes_options = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    options = option_names(ScoringConfig) if takes_options else []
    assert not [name for name in names if name not in parameters and name not in options]


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in YAML and b.kind in ("run", "file")], ids=str
)
def test_a_file_of_options_is_one(block: Block) -> None:
    ScoringConfig(**yaml.safe_load(block.text))


# What is run


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what stands for a reader's models and rows."""
    folder = tmp_path_factory.mktemp("reader")
    demo = Path(sparkinfer.__file__).parent / "demo"
    for name in ("my-model", "my-other-model", "sparkinfer/demo/model"):
        shutil.copytree(demo / "model", folder / name)
    add_sentence_files(make_encoder(folder / "my-encoder"), pooling("mean"))
    make_tagger(folder / "my-tagger")
    make_generator(folder / "my-llm", "gpt2")
    rows = pq.read_table(demo / "reviews.parquet").slice(0, ROWS)
    titles = [f"film {number}" for number in range(ROWS)]
    rows = rows.drop_columns(["id"]) if "id" in rows.column_names else rows
    rows = rows.append_column("id", [list(range(ROWS))]).append_column("title", [titles])
    pq.write_table(rows, folder / "reviews.parquet")
    return folder


@pytest.fixture
def reader(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a reader, and registries to which a page may add."""
    folder = tmp_path / "reader"
    shutil.copytree(material, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    registries: list[dict[str, Any]] = [BACKENDS, PROCESSORS, TASKS, VECTOR_STORES]
    before, modules = [dict(one) for one in registries], set(sys.modules)
    yield folder
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(folder)):
            del sys.modules[name]


def run_script(block: Block, folder: Path) -> None:
    """Runs a script line by line: `sparkinfer` by this process, whatever else by bash."""
    wanted = int(block.value.removeprefix(EXIT_CODE)) if EXIT_CODE in block.value else 0
    others: list[str] = []
    for line in [*lines_of(block.text), "sparkinfer"]:
        arguments = arguments_in(line) if is_call(line) else None
        if arguments is None:
            others.append(line)
            continue
        run_bash("\n".join(others), folder)
        others = []
        if arguments:
            assert main(arguments) == wanted, f"{block}: {line}"


def is_call(line: str) -> bool:
    return re.match(r"(\S*/)?sparkinfer\b", line) is not None


def run_bash(script: str, folder: Path) -> None:
    if script.strip():
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        subprocess.run(
            ["bash", "-e", "-c", script], cwd=folder, env={**os.environ, "PATH": path}, check=True
        )


@pytest.mark.parametrize("page", pages_of(RUN))
def test_a_page_runs_from_its_first_block_to_its_last(page: str, reader: Path) -> None:
    blocks = [block for block in RUN if block.page == page]
    for package in {block.value for block in blocks if block.kind == "run"} - {""}:
        if EXIT_CODE not in package and find_spec(package) is None:
            pytest.skip(f"{package} is not installed here")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        if block.kind == "file":
            (reader / block.value).write_text(block.text, "utf-8")
        elif block.language in SHELL:
            run_script(block, reader)
        elif block.language in PYTHON:
            exec(compile(block.text, str(block), "exec"), names)


@pytest.mark.spark
def test_the_blocks_for_spark_run(material: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(material, folder)
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs_on_spark", *pages_of(ON_SPARK)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("ran ")] == [
        f"ran {block}" for block in ON_SPARK
    ]
