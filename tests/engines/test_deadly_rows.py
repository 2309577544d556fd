"""Texts that end the process that scores them: each costs two ends and its own row."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import sparkinfer
from sparkinfer.config import ScoringConfig
from sparkinfer.engines.horovod.launchers import LAUNCHERS
from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks import TASKS
from sparkinfer.plan.processors import PROCESSORS
from sparkinfer.report.facts import read_facts
from sparkinfer.workers.suspects import DEADLY as REASON
from tests import deadly_backend
from tests.deadly_backend import DEADLY, DEADLY_ONCE, HANGING, ends_of
from tests.standalone_cluster import StandaloneCluster, run_driver
from tests.tiny_generators import make_generator
from tests.tiny_models import sentences

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Importing them has registered them, which is meant for workers.
BACKENDS.pop("deadly")
TASKS.pop("deadly-tokenizer")

ODD = {29: DEADLY, 30: f"{DEADLY} red", 77: DEADLY_ONCE}
"""By row: two in one batch that cost three ends and are lost, and in another chunk one that only
looks guilty, which costs one end."""

LOST = (29, 30)

STALL_S = 4
"""More than a first batch takes on a busy machine."""


def scoring(config: ScoringConfig) -> Any:
    options = ModelOptions.of(config)
    return deadly_backend.WithDeadlyBackend(config.model, config.revision, options)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("text-classification", "deadly-tokenizer"):
        monkeypatch.setitem(PROCESSORS, task, scoring)
    monkeypatch.setitem(TASKS, "deadly-tokenizer", deadly_backend.DeadlyTask)
    monkeypatch.setitem(BACKENDS, "deadly", deadly_backend.DeadlyBackend())


@pytest.fixture
def model(classifier: Path, tmp_path: Path) -> Path:
    """A model that no worker keeps from another test; its ends are counted beside it."""
    folder = shutil.copytree(classifier, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "of_test": str(tmp_path)}))
    return folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> ScoringConfig:
    return ScoringConfig(
        model=str(model),
        input=str(tmp_path / "in.parquet"),
        input_col="text",
        output=str(tmp_path / "out"),
        acceleration="deadly",
        dtype="float32",
        chunks={"target_rows": 20},
        batching={"max_batch_rows": 8},
    )


def write_input(config: ScoringConfig, odd: Mapping[int, str]) -> None:
    """Writes a hundred rows, for chunks of twenty, some of them with an odd text."""
    texts = [f"film {i} {odd[i]}" if i in odd else one for i, one in enumerate(sentences(100))]
    table = pa.table({"id": range(100), "text": texts, "n": [[i] for i in range(100)]})
    pq.write_table(table, config.input, row_group_size=10)


def deaths_in(caplog: pytest.LogCaptureFixture) -> int:
    return sum("its worker died" in record.getMessage() for record in caplog.records)


def rows_of(config: ScoringConfig) -> list[dict[str, Any]]:
    return pads.dataset(config.output, format="parquet").to_table().sort_by("id").to_pylist()


def assert_only_these_are_lost(
    config: ScoringConfig, lost: Collection[int], prefix: str = ""
) -> None:
    rows = rows_of(config)
    assert [row["id"] for row in rows] == list(range(100))
    assert [row["n"] for row in rows] == [[i] for i in range(100)]
    errors = {row["id"]: row[f"{prefix}error"] for row in rows if row[f"{prefix}error"]}
    assert errors == dict.fromkeys(lost, REASON)
    assert [row["id"] for row in rows if row[f"{prefix}prediction"] is None] == list(lost)
    assert not (Path(str(config.output)) / "_sparkinfer" / "notes").exists()


@pytest.mark.spark
@pytest.mark.parametrize(
    ("task", "odd", "lost", "ends"),
    [
        pytest.param("text-classification", ODD, LOST, 4, id="model"),
        pytest.param("text-classification", {29: HANGING}, (29,), 2, id="hang"),
        pytest.param("deadly-tokenizer", {29: DEADLY}, (29,), 2, id="tokenizer"),
        pytest.param(
            "deadly-tokenizer", {29: HANGING}, (29,), 2, marks=pytest.mark.slow, id="tokenizer hang"
        ),
    ],
)
def test_under_pandas_udf_a_deadly_text_costs_its_row_and_few_ends(
    spark: SparkSession,
    config: ScoringConfig,
    model: Path,
    caplog: pytest.LogCaptureFixture,
    task: str,
    odd: Mapping[int, str],
    lost: Collection[int],
    ends: int,
) -> None:
    write_input(config, odd)
    config = config.replace(engine="pandas_udf", task=task, stall_timeout_s=STALL_S)
    with caplog.at_level(logging.WARNING):
        result = sparkinfer.run(config, spark)
    assert (result.rows, result.error_rows) == (100, len(lost))
    assert ends_of(model) == deaths_in(caplog) == ends
    assert read_facts(str(config.output)).sessions[0].lost_workers == ends
    assert_only_these_are_lost(config, lost)
    files = Path(str(config.output)).glob("*.parquet")
    assert len({str(pq.read_schema(path).remove_metadata()) for path in files}) == 1


@pytest.mark.spark
def test_a_text_that_is_deadly_to_one_of_several_models_is_what_the_others_make_of_it(
    spark: SparkSession, config: ScoringConfig, model: Path, tmp_path: Path
) -> None:
    """Those that generate give the texts of a run in which no worker dies, drawn ones as well."""
    write_input(config, {29: DEADLY})
    generator = str(make_generator(tmp_path / "llama", "llama"))
    said = {"model": generator, "task": "text-generation", "acceleration": "none"}
    models: dict[str, Any] = {
        "said": {**said, "generation": {"max_new_tokens": 6}},
        "drawn": {**said, "generation": {"max_new_tokens": 6, "do_sample": True, "seed": 3}},
    }
    whole = config.replace(
        model=None, models=models, engine="local", output=str(tmp_path / "whole")
    )
    sparkinfer.run(whole)
    models = {"mood": {"model": str(model)}, **models}
    config = config.replace(model=None, models=models, engine="pandas_udf")
    result = sparkinfer.run(config, spark)
    assert (result.rows, result.error_rows) == (100, 1)
    assert ends_of(model) == 2
    assert_only_these_are_lost(config, (29,), "mood_")
    expected = rows_of(whole)
    assert [{name: row[name] for name in expected[0]} for row in rows_of(config)] == expected


@pytest.mark.spark
@pytest.mark.parametrize(
    ("odd", "lost", "ends"),
    [
        pytest.param(ODD, LOST, 4, id="death"),
        pytest.param({29: HANGING}, (29,), 2, marks=pytest.mark.slow, id="hang"),
    ],
)
def test_a_text_that_ends_the_prepare_stage_costs_its_row_and_few_ends(
    spark: SparkSession,
    ranks_in_turn: dict[str, Any],
    config: ScoringConfig,
    model: Path,
    odd: Mapping[int, str],
    lost: Collection[int],
    ends: int,
) -> None:
    write_input(config, odd)
    config = config.replace(engine="horovod", task="deadly-tokenizer", stall_timeout_s=STALL_S)
    result = sparkinfer.run(config.replace(**ranks_in_turn), spark)
    assert (result.rows, result.error_rows) == (100, len(lost))
    assert ends_of(model) == ends
    assert_only_these_are_lost(config, lost)


@pytest.mark.spark
def test_under_horovod_a_deadly_text_costs_two_deaths_in_one_call(
    spark: SparkSession, config: ScoringConfig, model: Path
) -> None:
    write_input(config, {29: DEADLY})
    horovod = {"launcher": next(iter(LAUNCHERS))}
    config = config.replace(engine="horovod", num_workers=2, horovod=horovod)
    result = sparkinfer.run(config, spark)
    assert (result.rows, result.error_rows) == (100, 1)
    assert ends_of(model) <= 2
    assert_only_these_are_lost(config, (29,))


@pytest.mark.parametrize(
    ("odd", "lost", "ends"),
    [
        pytest.param(ODD, LOST, 4, id="death"),
        pytest.param({29: HANGING}, (29,), 2, id="hang"),
    ],
)
def test_in_processes_of_local_a_deadly_text_costs_its_row_and_few_ends(
    config: ScoringConfig,
    model: Path,
    caplog: pytest.LogCaptureFixture,
    odd: Mapping[int, str],
    lost: Collection[int],
    ends: int,
) -> None:
    write_input(config, odd)
    config = config.replace(engine="local", num_workers=2, stall_timeout_s=STALL_S)
    with caplog.at_level(logging.WARNING):
        result = sparkinfer.run(config)
    assert (result.rows, result.error_rows) == (100, len(lost))
    assert ends_of(model) == deaths_in(caplog) == ends
    assert read_facts(str(config.output)).sessions[0].lost_workers == ends
    assert_only_these_are_lost(config, lost)


def test_under_local_the_third_command_has_all_other_rows(
    config: ScoringConfig, tmp_path: Path
) -> None:
    """The process that dies is the caller's own."""
    write_input(config, {29: DEADLY})
    script = tmp_path / "score.py"
    script.write_text(textwrap.dedent(SCORE))
    given = pickle.dumps(config.replace(engine="local")).hex()
    command = [sys.executable, str(script), given]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ends = [subprocess.run(command, check=False, env=env).returncode for _ in range(3)]
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert_only_these_are_lost(config, (29,))


SCORE = """
    import pickle
    import sys

    import sparkinfer
    from sparkinfer.plan.processors import PROCESSORS
    from tests.engines.test_deadly_rows import BACKENDS, deadly_backend, scoring

    PROCESSORS["text-classification"] = scoring
    BACKENDS["deadly"] = deadly_backend.DeadlyBackend()
    sparkinfer.run(pickle.loads(bytes.fromhex(sys.argv[1])))
"""


def drive(spark: object, given: str) -> list[int]:
    import pickle

    import sparkinfer
    from sparkinfer.plan.processors import PROCESSORS
    from tests.engines.test_deadly_rows import BACKENDS, deadly_backend, scoring

    PROCESSORS["text-classification"] = scoring
    BACKENDS["deadly"] = deadly_backend.DeadlyBackend()
    result = sparkinfer.run(pickle.loads(bytes.fromhex(given)), spark)
    return [result.rows, result.error_rows]


@pytest.mark.slow
@pytest.mark.spark
def test_on_a_cluster_that_tries_tasks_again_a_deadly_text_costs_two_deaths(
    standalone_cluster: StandaloneCluster, config: ScoringConfig, model: Path
) -> None:
    write_input(config, {29: DEADLY})
    given = pickle.dumps(config.replace(engine="pandas_udf")).hex()
    assert run_driver(standalone_cluster, drive, {"given": given}) == [100, 1]
    assert ends_of(model) == 2
    assert_only_these_are_lost(config, (29,))
