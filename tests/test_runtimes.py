"""The wheel on the Databricks runtimes: what each ships is in `conf/constraints/dbr*.txt`."""

from __future__ import annotations

import re
import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from scripts import find_python
from tests.standalone_cluster import CHECKOUT

RUNTIMES = ("15.4", "16.4", "17.3", "18", "19")
PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<installed>\S+)(?:  # stands for (?P<shipped>\S+))?$")

STAND_INS = {
    "15.4": {"setuptools", "sympy", "torch"},
    "16.4": {"kiwisolver", "pandas", "setuptools", "sympy", "torch"},
    "17.3": {"setuptools", "torch"},
    "18": {"torch"},
    "19": {"torch"},
}


@cache
def lines(runtime: str) -> tuple[str, ...]:
    path = CHECKOUT / "conf" / "constraints" / f"dbr{runtime}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def pins(runtime: str) -> list[dict[str, str]]:
    matches = [PIN.match(line) for line in lines(runtime) if not line.startswith("#")]
    assert all(matches)
    return [match.groupdict() for match in matches if match]


def shipped(runtime: str) -> dict[str, str]:
    """Returns the versions of the runtime itself by the packages' canonical names."""
    found = ((pin["name"], pin["shipped"] or pin["installed"]) for pin in pins(runtime))
    return {canonicalize_name(name): version for name, version in found}


@cache
def declared() -> dict[str, Any]:
    """Returns what `setup.py` declares."""
    given: dict[str, Any] = {}
    with mock.patch("setuptools.setup", given.update):
        runpy.run_path(str(CHECKOUT / "setup.py"))
    return given


def missing(runtime: str, needs: list[str]) -> list[str]:
    """Returns the names of what pip would add; asserts that it would change nothing else."""
    there = shipped(runtime)
    wanted = [Requirement(need) for need in needs]
    replaced = [
        f"{need} in place of {there[name]}"
        for need in wanted
        if (name := canonicalize_name(need.name)) in there
        and not need.specifier.contains(there[name])
    ]
    assert replaced == []
    return sorted(need.name for need in wanted if canonicalize_name(need.name) not in there)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_wheel_adds_and_replaces_nothing(runtime: str) -> None:
    assert missing(runtime, declared()["install_requires"]) == []


@pytest.mark.parametrize(
    ("extra", "added"),
    [
        ("delta", {"15.4": ["deltalake"], "16.4": ["deltalake"], "17.3": ["deltalake"]}),
        ("horovod", {}),
        ("s3", {key: ["s3fs"] for key in RUNTIMES}),
        # The runtimes have its smaller distribution, mlflow-skinny, with the module of that name.
        ("mlflow", {key: ["mlflow"] for key in RUNTIMES}),
    ],
)
def test_an_extra_adds_no_more_than_itself(extra: str, added: dict[str, list[str]]) -> None:
    runtimes = RUNTIMES[:1] if extra == "horovod" else RUNTIMES
    needs = declared()["extras_require"][extra]
    assert {name: got for name in runtimes if (got := missing(name, needs))} == added


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_its_python_is_one_of_those_that_the_package_allows(runtime: str) -> None:
    python = lines(runtime)[0].removeprefix("# Python ")
    assert SpecifierSet(declared()["python_requires"]).contains(f"{python}.0")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_versions_are_installed_only_of_these(runtime: str) -> None:
    assert {pin["name"] for pin in pins(runtime) if pin["shipped"]} == STAND_INS[runtime]


def test_a_python_that_does_not_run_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shim = tmp_path / f"python{version}"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    real = tmp_path / "versions" / f"{version}.99" / "bin" / "python"
    real.parent.mkdir(parents=True)
    real.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert find_python.find(version) == str(real)
    assert find_python.find("0.9") is None
