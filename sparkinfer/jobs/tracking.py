"""A run in MLflow for each run of an output, if the configuration asks for it.

MLflow never ends a run and holds it up for seconds at most: what could not be written is told in
one warning, and written by the next call on the output.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from sparkinfer import __version__
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError
from sparkinfer.jobs.account import Account
from sparkinfer.jobs.asked import asked_options
from sparkinfer.jobs.manifest import Manifest, manifest_path
from sparkinfer.jobs.mlflow_note import keep_note, read_note
from sparkinfer.jobs.output import REPORT_FILE
from sparkinfer.jobs.pinned import models_of
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.sessions import Outcome, Session
from sparkinfer.logs import get_logger
from sparkinfer.messages import shortened
from sparkinfer.plan.phases import LOAD, SCORE
from sparkinfer.plan.prelude import Prelude
from sparkinfer.redaction import without_secrets
from sparkinfer.storage import WORK_FOLDER, join, read_text
from sparkinfer.tracking.calls import Step, try_steps
from sparkinfer.tracking.client import (
    OUTPUT_TAG,
    PARENT_TAG,
    active_run,
    found_run,
    import_mlflow,
    named_experiment,
    notebook_experiment,
    refuse_wrong_call,
)
from sparkinfer.tracking.names import MOST_OF_TAG, as_texts, most_of_parameter, valid_names
from sparkinfer.workers.statistics import ScoringStatistics

logger = get_logger(__name__)

AT_ONCE = 100
"""Parameters that a server takes in one request."""

STATUS: dict[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@contextmanager
def tracked(prelude: Prelude, account: Account) -> Iterator[None]:
    """Has the call that an account is of written to MLflow while the context is open.

    Raises:
        EngineUnavailableError: MLflow is not installed.
        ConfigError: there can be no such experiment.
    """
    if prelude.config.mlflow.experiment is None:
        yield
        return
    tracking = Tracking(prelude)
    tracking.open()
    account.tracking = tracking
    try:
        yield
    finally:
        tracking.end(account)


class Tracking:
    """The run in MLflow of one call.

    Args:
        prelude: of the run.

    Attributes:
        mlflow_run: its id; empty until it is known.
    """

    def __init__(self, prelude: Prelude) -> None:
        self.mlflow_run = ""
        self._prelude, self._asked = prelude, prelude.config.mlflow
        self._output = str(prelude.config.output)
        self._parent = active_run()
        self._client: Any = None
        self._experiment = ""
        self._manifest: Manifest | None = None
        self._failed: dict[str, str] = {}

    def open(self) -> None:
        """Finds the experiment; where the store does not answer, that is left for later.

        Raises:
            EngineUnavailableError: MLflow is not installed.
            ConfigError: there can be no such experiment.
        """
        wrong: list[ConfigError] = []
        shown = f"mlflow.experiment={self._asked.experiment!r}"
        import_mlflow(shown)

        def look() -> None:
            try:
                self._find_experiment()
            except Exception as error:
                try:
                    refuse_wrong_call(error, shown)
                except ConfigError as refused:
                    wrong.append(refused)
                raise

        self._failed = try_steps([("the experiment", look)])
        if wrong:
            raise wrong[0]

    def begin(self, manifest: Manifest) -> None:
        """Opens the run in MLflow that belongs to a run, and writes what is known of it."""
        is_first, self._manifest = self._manifest is None, manifest
        if is_first:
            self._failed = {} if self._failed else try_steps(self._first_steps(manifest))

    def end(self, account: Account) -> None:
        """Writes what a call did and how it ended, and what could not be written before."""
        if self._manifest is None or account.outcome is None:
            return
        before = [step for step in self._first_steps(self._manifest) if self._is_left(step[0])]
        failed = try_steps(
            [
                *before,
                ("metrics", partial(self._log_metrics, account.session, account.result)),
                ("the manifest", self._log_manifest),
                ("the report", self._log_report),
                ("its end", partial(self._close, account.outcome, account.reason)),
            ]
        )
        if failed:
            logger.warning(
                "MLflow has no %s of this run (%s); the run itself is not affected, and the same "
                "command writes them",
                ", ".join(failed),
                "; ".join(dict.fromkeys(failed.values())),
            )

    def _is_left(self, what: str) -> bool:
        return not self.mlflow_run or what in self._failed

    def _first_steps(self, manifest: Manifest) -> list[Step]:
        return [
            ("entry", partial(self._open_run, manifest)),
            ("parameters", partial(self._log_parameters, manifest)),
            ("input", partial(self._log_input, manifest)),
        ]

    def _find_experiment(self) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self._asked.tracking_uri)
        name = self._asked.experiment
        self._experiment = (
            named_experiment(self._client, name) if isinstance(name, str) else notebook_experiment()
        )

    def _open_run(self, manifest: Manifest) -> None:
        if not self._experiment:
            self._find_experiment()
        noted = read_note(self._output, manifest.run)
        if noted is None or not self._goes_on(noted):
            name = self._asked.run_name
            noted = found_run(self._client, self._experiment, manifest.run, self._tags(), name)
            keep_note(self._output, manifest.run, noted)
        self._client.update_run(noted, status="RUNNING")
        self.mlflow_run = noted

    def _goes_on(self, noted: str) -> bool:
        """Returns whether a run is still there to go on with."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(noted)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return bool(found.info.lifecycle_stage == "active")

    def _tags(self) -> dict[str, str]:
        config = self._prelude.config
        own = {
            OUTPUT_TAG: self._output,
            "sparkinfer.version": __version__,
            "sparkinfer.engine": config.engine,
            "sparkinfer.device": self._prelude.workers.device_type,
            **models_of(self._prelude),
        }
        tags = as_texts({**self._asked.tags, **own}, MOST_OF_TAG)
        return tags if self._parent is None else {**tags, PARENT_TAG: self._parent}

    def _log_parameters(self, manifest: Manifest) -> None:
        """Writes the parameters that are not there: they never change, as what they say."""
        from mlflow.entities import Param

        asked = {**asked_options(self._prelude.config), **manifest.settings}
        there = self._client.get_run(self.mlflow_run).data.params
        texts = as_texts(asked, most_of_parameter())
        params = [Param(name, text) for name, text in texts.items() if name not in there]
        for start in range(0, len(params), AT_ONCE):
            self._client.log_batch(self.mlflow_run, params=params[start : start + AT_ONCE])

    def _log_input(self, manifest: Manifest) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        config = self._prelude.config
        dataset = Dataset(
            name=shortened(_input_of(config), 500),
            digest=_digest(manifest),
            source_type="local",
            source=json.dumps({"uri": shortened(_input_of(config), 10_000)}),
            profile=json.dumps({"rows": manifest.rows}),
        )
        tags = [InputTag("mlflow.data.context", "scoring")]
        self._client.log_inputs(self.mlflow_run, datasets=[DatasetInput(dataset, tags)])

    def _log_metrics(self, session: Session | None, result: RunResult | None) -> None:
        from mlflow.entities import Metric

        found = {**_of_session(session), **_of_result(result)}
        step, now = (0 if session is None else session.number), _now_ms()
        metrics = [Metric(name, float(one), now, step) for name, one in valid_names(found).items()]
        if metrics:
            self._client.log_batch(self.mlflow_run, metrics=metrics)

    def _log_manifest(self) -> None:
        if self._manifest is not None:
            self._log_file(manifest_path(self._output, self._manifest.number), "manifest.json")

    def _log_report(self) -> None:
        self._log_file(join(self._output, WORK_FOLDER, REPORT_FILE), REPORT_FILE)

    def _log_file(self, path: str, name: str) -> None:
        text = read_text(path)
        if text is not None:
            self._client.log_text(self.mlflow_run, text, name)

    def _close(self, outcome: Outcome, reason: str) -> None:
        how = without_secrets(f"{outcome}: {reason}" if reason else outcome)
        self._client.set_tag(self.mlflow_run, "sparkinfer.outcome", shortened(how, MOST_OF_TAG))
        self._client.set_terminated(self.mlflow_run, STATUS[outcome])


def _input_of(config: ScoringConfig) -> str:
    paths = config.input if isinstance(config.input, tuple) else (config.input or "a DataFrame",)
    return ", ".join(map(without_secrets, paths))


def _digest(manifest: Manifest) -> str:
    """Returns what tells the input from another state of it, in as many characters as fit."""
    files = [asdict(file) for file in manifest.input_files]
    state = [files, None if manifest.table is None else asdict(manifest.table)]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]


def _of_session(session: Session | None) -> dict[str, float]:
    """Returns the figures of one call."""
    if session is None:
        return {}
    total = ScoringStatistics()
    for device in session.devices:
        total.add(device.statistics)
    scored = session.rows + session.retried_rows
    scoring_s = sum(session.phases.get(name, 0.0) for name in (LOAD, SCORE))
    return {
        "seconds": session.seconds,
        "rows_per_s": scored / scoring_s if scoring_s else 0.0,
        "padding_share": total.padding_share,
        "call.rows": session.rows,
        "call.errors": session.errors,
        **{f"phase.{name}_s": seconds for name, seconds in session.phases.items()},
        **{f"statistics.{name}": value for name, value in total.as_dict().items()},
    }


def _of_result(result: RunResult | None) -> dict[str, float]:
    """Returns the figures of the whole output."""
    if result is None:
        return {}
    rows = {"rows": result.rows, "rows_read": result.rows_read, "error_rows": result.error_rows}
    return {**rows, **{name: value for name, value in result.metrics.items() if name not in rows}}


def _now_ms() -> int:
    return int(time.time() * 1000)
