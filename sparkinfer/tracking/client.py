"""A client of MLflow's, and where in its store runs are: nothing of the process is changed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.messages import first_line
from sparkinfer.redaction import without_secrets
from sparkinfer.tracking.calls import is_unreachable

RUN_TAG, OUTPUT_TAG = "sparkinfer.run", "sparkinfer.output"
PARENT_TAG = "mlflow.parentRunId"

WRONG_CALL = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "BAD_REQUEST"}
)
"""Codes of errors that will be the same at the next try."""


def import_mlflow(shown: str) -> Any:
    """Returns the package.

    Args:
        shown: what needs it.

    Raises:
        EngineUnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("mlflow")
    except ImportError:
        raise EngineUnavailableError(
            f"{shown}: MLflow is not installed; run pip install mlflow (the extra [mlflow])"
        ) from None


def named_experiment(client: Any, name: str) -> str:
    """Returns the id of an experiment, which is created if there is none.

    Raises:
        ConfigError: it is deleted.
        Exception: whatever the store raises.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name))
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"mlflow.experiment={name!r}: the experiment is deleted; restore it, or give another"
        )
    return str(found.experiment_id)


def notebook_experiment() -> str:
    """Returns the id of the experiment that MLflow takes in this notebook of Databricks.

    Raises:
        ConfigError: this is not Databricks, or there is no experiment.
        Exception: whatever the store raises.
    """
    from mlflow.tracking import fluent

    give = "give its name, as --mlflow NAME or mlflow='NAME'"
    if not os.environ.get("DATABRICKS_RUNTIME_VERSION"):
        raise ConfigError(
            f"mlflow without an experiment: only Databricks notebooks have one; {give}"
        )
    found = fluent._get_experiment_id()
    if found in (None, "0"):  # the latter: MLflow's default where nothing names one
        raise ConfigError(f"mlflow without an experiment: this is no notebook that has one; {give}")
    return str(found)


def refuse_wrong_call(error: Exception, shown: str) -> None:
    """Raises ConfigError if a store's error says that what was asked for is wrong."""
    if isinstance(error, ConfigError):
        raise error
    if not is_unreachable(error) and getattr(error, "error_code", "") in WRONG_CALL:
        reason = without_secrets(first_line(error))
        raise ConfigError(
            f"{shown}: {reason}; correct mlflow.experiment or mlflow.tracking_uri"
        ) from error


def active_run() -> str | None:
    """Returns the id of the run that the caller has open in this thread, None if there is none."""
    mlflow = sys.modules.get("mlflow")
    active = mlflow.active_run() if mlflow is not None else None
    return None if active is None else str(active.info.run_id)


def found_run(
    client: Any, experiment: str, run: str, tags: Mapping[str, str], name: str | None = None
) -> str:
    """Returns the id of the run in MLflow that has a run's tag, which is created if there is none.

    Args:
        client: of the store.
        experiment: its id.
        run: id of the run; empty: it has none by which it could be found.
        tags: of a new one, besides; among them the output's.
        name: of a new one; None: MLflow finds one.
    """
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run}'") if run else []
    # The ids of runs are short: another output may have the same one.
    runs = [one for one in found if one.data.tags.get(OUTPUT_TAG) == tags[OUTPUT_TAG]]
    if not runs:
        runs = [client.create_run(experiment, tags={RUN_TAG: run, **tags}, run_name=name)]
    return str(runs[0].info.run_id)
