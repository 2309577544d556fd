"""The DAGs of `conf/airflow`, with a stand-in for Airflow, which is not installed here.

The stand-in takes any argument: that Airflow knows the operators' arguments is not shown by this.
"""

from __future__ import annotations

import runpy
import shlex
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sparkinfer import cli
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import SparkInferError
from tests.databricks_bundle import CHECKOUT, deployed

FILE = CHECKOUT / "conf" / "airflow" / "score_reviews.py"


@dataclass
class Dag:
    """Stands in for `airflow.sdk.DAG`."""

    name: str
    options: dict[str, Any]
    operators: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def dags(monkeypatch: pytest.MonkeyPatch) -> dict[str, Dag]:
    """The DAGs of the file by name, with what their operators were given."""
    found: dict[str, Dag] = {}

    class OpenDag:
        def __init__(self, name: str, **options: Any) -> None:
            self.dag = found[name] = Dag(name, options)

        def __enter__(self) -> OpenDag:
            found["open"] = self.dag
            return self

        def __exit__(self, *_: object) -> None:
            del found["open"]

    def operator(**given: Any) -> None:
        found["open"].operators.append(given)

    databricks = "airflow.providers.databricks.operators.databricks"
    for name, attributes in {
        "airflow.sdk": {"DAG": OpenDag},
        databricks: {"DatabricksRunNowOperator": operator},
        "airflow.providers.standard.operators.bash": {"BashOperator": operator},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
        for parent in Path(name.replace(".", "/")).parents:
            package = str(parent).replace("/", ".")
            if package != ".":
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    runpy.run_path(str(FILE))
    return found


def test_one_run_at_a_time_writes_to_an_output(dags: dict[str, Dag]) -> None:
    assert set(dags) == {"sparkinfer_databricks", "sparkinfer_cluster"}
    for dag in dags.values():
        assert (dag.options["max_active_runs"], dag.options["catchup"]) == (1, False)


def test_the_job_that_airflow_runs_is_one_of_the_bundle(dags: dict[str, Dag]) -> None:
    [operator] = dags["sparkinfer_databricks"].operators
    assert operator["job_name"] in {job["name"] for job in deployed("aws")["jobs"].values()}


def test_the_command_that_airflow_runs_is_valid(
    dags: dict[str, Dag], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[ScoringConfig] = []

    def take(config: ScoringConfig, **_: Any) -> NoReturn:
        configs.append(config)
        raise SparkInferError("it is not run here")

    monkeypatch.setattr("sparkinfer.api.functions.run", take)
    [operator] = dags["sparkinfer_cluster"].operators
    program, *arguments = shlex.split(operator["bash_command"])
    assert (program, cli.main(arguments)) == ("sparkinfer", cli.FAILED)
    assert configs[0].incremental
    assert not configs[0].overwrite
