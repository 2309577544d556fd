"""Skips what needs a GPU where there is none; with `--require-gpu`, fails instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

NO_GPU = "torch sees no CUDA device on this machine"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="fail where torch sees no CUDA device"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    # Without the option where this file is not among the first to be loaded.
    if config.getoption("--require-gpu", default=False):
        pytest.exit(f"{NO_GPU}: nothing was tested", returncode=1)
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the models of a session."""
    return tmp_path_factory.mktemp("models")
