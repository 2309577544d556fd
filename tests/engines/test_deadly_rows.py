"""Texts that kill the process that scores them: each costs two deaths and its own row."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.engines.horovod.launchers import LAUNCHERS
from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.options import ModelOptions
from sparkinfer.plan.processors import PROCESSORS
from sparkinfer.workers.suspects import DEADLY as REASON
from tests import deadly_backend
from tests.deadly_backend import DEADLY
from tests.tiny_models import sentences

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Importing it has registered it, which is meant for workers.
BACKENDS.pop("deadly")

LOST = (29, 77)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def scoring(config: sparkinfer.ScoringConfig) -> Any:
        options = ModelOptions.of(config)
        return deadly_backend.WithDeadlyBackend(config.model, config.revision, options)

    monkeypatch.setitem(PROCESSORS, "text-classification", scoring)
    monkeypatch.setitem(BACKENDS, "deadly", deadly_backend.DeadlyBackend())


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> sparkinfer.ScoringConfig:
    """A hundred rows in chunks of twenty, of which two in different chunks are deadly."""
    texts = list(sentences(100))
    for row in LOST:
        texts[row] = f"film {row} {DEADLY}"
    table = pa.table({"id": range(100), "text": texts, "n": [[i] for i in range(100)]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=10)
    return sparkinfer.ScoringConfig(
        model=str(classifier),
        input=str(tmp_path / "in.parquet"),
        input_col="text",
        output=str(tmp_path / "out"),
        acceleration="deadly",
        dtype="float32",
        chunks={"target_rows": 20},
        batching={"max_batch_rows": 8},
    )


def deaths_in(caplog: pytest.LogCaptureFixture) -> int:
    return sum("its worker died" in record.getMessage() for record in caplog.records)


def assert_only_deadly_rows_are_lost(config: sparkinfer.ScoringConfig) -> None:
    rows = pads.dataset(config.output, format="parquet").to_table().sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(100))
    assert [row["n"] for row in rows] == [[i] for i in range(100)]
    assert {row["id"]: row["error"] for row in rows if row["error"]} == dict.fromkeys(LOST, REASON)
    assert [row["id"] for row in rows if row["prediction"] is None] == list(LOST)
    assert not (Path(str(config.output)) / "_sparkinfer" / "notes").exists()


@pytest.mark.spark
def test_under_pandas_udf_a_deadly_text_costs_two_deaths(
    spark: SparkSession, config: sparkinfer.ScoringConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = config.replace(engine="pandas_udf")
    with caplog.at_level(logging.WARNING):
        result = sparkinfer.run(config, spark)
    assert (result.rows, result.error_rows) == (100, 2)
    assert deaths_in(caplog) == 2 * len(LOST)
    assert_only_deadly_rows_are_lost(config)
    files = Path(str(config.output)).glob("*.parquet")
    assert len({str(pq.read_schema(path).remove_metadata()) for path in files}) == 1


@pytest.mark.spark
@pytest.mark.slow
def test_under_horovod_a_deadly_text_costs_two_deaths_in_one_call(
    spark: SparkSession, config: sparkinfer.ScoringConfig, caplog: pytest.LogCaptureFixture
) -> None:
    horovod = {"launcher": next(iter(LAUNCHERS))}
    config = config.replace(engine="horovod", num_workers=2, horovod=horovod)
    with caplog.at_level(logging.WARNING):
        result = sparkinfer.run(config, spark)
    assert (result.rows, result.error_rows) == (100, 2)
    assert deaths_in(caplog) <= 2 * len(LOST)
    assert_only_deadly_rows_are_lost(config)


def test_under_local_the_third_command_has_all_other_rows(
    config: sparkinfer.ScoringConfig,
) -> None:
    """The process that dies is the caller's own."""
    config = config.replace(engine="local")
    code = f"""
        import sparkinfer
        from sparkinfer.models.options import ModelOptions
        from sparkinfer.plan.processors import PROCESSORS
        from tests.deadly_backend import WithDeadlyBackend

        PROCESSORS["text-classification"] = lambda config: WithDeadlyBackend(
            config.model, config.revision, ModelOptions.of(config)
        )
        sparkinfer.run(sparkinfer.ScoringConfig(
            model={config.model!r}, input={config.input!r}, input_col="text",
            output={config.output!r}, engine="local", acceleration="deadly", dtype="float32",
            chunks={{"target_rows": 20}}, batching={{"max_batch_rows": 8}},
        ))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ends = [subprocess.run(command, check=False).returncode for _ in range(2 * len(LOST) + 1)]
    assert ends == [-signal.SIGKILL] * 2 * len(LOST) + [0]
    assert_only_deadly_rows_are_lost(config)
