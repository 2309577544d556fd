"""Reported metrics in MLflow: each commit's once, whatever dies in between.

A run of a batch processor has one run in MLflow, found again by a tag. The records of the output
say what is to be there, a second tag how far MLflow has it; what lies between the two is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from sparkinfer.batch_process.commits import Commit
from sparkinfer.exceptions import ConfigError
from sparkinfer.logs import get_logger
from sparkinfer.messages import first_line
from sparkinfer.tracking.client import (
    OUTPUT_TAG,
    found_run,
    import_mlflow,
    named_experiment,
)

logger = get_logger(__name__)

ROUND_TAG = "sparkinfer.round"


class MlflowLog:
    """The MLflow run of a run.

    Args:
        experiment: its name; it is created if there is none.
        output: the output folder, for people.
        run: id of the run.

    Raises:
        EngineUnavailableError: mlflow is not installed.
        ConfigError: its server does not answer as it should.
    """

    def __init__(self, experiment: str, output: str, run: str) -> None:
        self._client: Any = import_mlflow(f"mlflow_experiment={experiment!r}").MlflowClient()
        self._waiting: list[Commit] = []
        try:
            number = named_experiment(self._client, experiment)
            self._id = found_run(self._client, number, run, {ROUND_TAG: "0", OUTPUT_TAG: output})
        except Exception as error:  # of each kind of store
            raise ConfigError(
                f"mlflow_experiment={experiment!r}: {first_line(error)}; set MLFLOW_TRACKING_URI "
                "to a server that answers, or leave it out"
            ) from error

    def add(self, commits: Iterable[Commit]) -> None:
        """Logs the numbers among the metrics of commits that MLflow does not have yet."""
        logged = int(self._client.get_run(self._id).data.tags[ROUND_TAG])
        for commit in commits:
            if commit.number > logged:
                missing = [one for one in _metrics_of(commit) if not self._has(one)]
                if missing:
                    self._client.log_batch(self._id, metrics=missing)
                self._client.set_tag(self._id, ROUND_TAG, str(commit.number))

    def try_add(self, commit: Commit) -> None:
        """Logs a commit as it comes; where that fails, with the next one, or by `add`."""
        self._waiting.append(commit)
        try:
            self.add(self._waiting)
            self._waiting.clear()
        except Exception as error:  # the run goes on
            logger.warning("MLflow does not take the metrics for now: %s", first_line(error))

    def finish(self) -> None:
        """Says that nothing follows."""
        self._client.set_terminated(self._id)

    def _has(self, metric: Any) -> bool:
        history = self._client.get_metric_history(self._id, metric.key)
        key = (metric.step, metric.timestamp, repr(metric.value))
        return any((one.step, one.timestamp, repr(one.value)) == key for one in history)


def _metrics_of(commit: Commit) -> Iterator[Any]:
    from mlflow.entities import Metric

    at = int(datetime.fromisoformat(commit.at).timestamp() * 1000)
    for rank in commit.ranks:
        of_rank = f"/rank_{rank.rank}" if rank.rank else ""  # equal ones would be one to MLflow
        for reported in rank.metrics:
            for name, value in reported["metrics"].items():
                if isinstance(value, int | float):
                    key = f"{reported['group']}/{name}{of_rank}"
                    yield Metric(key, float(value), at, reported["steps_completed"])
