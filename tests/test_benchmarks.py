"""The benchmarks are run by hand; what they take from the package must be there all the same."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import tests.benchmarks

NAMES = [module.name for module in pkgutil.iter_modules(tests.benchmarks.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"tests.benchmarks.{name}").__doc__
