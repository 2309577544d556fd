"""One job under each engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

import sparkinfer

Run = Callable[..., tuple[sparkinfer.RunResult, pa.Table]]


@pytest.fixture(
    params=[
        "local",
        pytest.param("pandas_udf", marks=pytest.mark.spark),
        pytest.param("horovod", marks=pytest.mark.spark),
    ]
)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(engine: str, classifier: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Scores an input with one engine and returns the result and the rows by id."""
    spark = request.getfixturevalue("spark") if engine != "local" else None
    of_engine = request.getfixturevalue("ranks_in_turn") if engine == "horovod" else {}

    def run_engine(source: Any, **options: Any) -> tuple[sparkinfer.RunResult, pa.Table]:
        config = sparkinfer.ScoringConfig(
            **{
                "model": str(classifier),
                "input": source,
                "input_col": "text",
                "output": str(tmp_path / "out"),
                "engine": engine,
                "dtype": "float32",
                **of_engine,
                **options,
            }
        )
        result = sparkinfer.run(config, spark)
        return result, pads.dataset(config.output, format="parquet").to_table().sort_by("id")

    return run_engine
