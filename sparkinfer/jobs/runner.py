"""A whole run: check everything, score, publish, and say what was done."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.base import Engine, UnitResult, Workers, WorkUnit
from sparkinfer.exceptions import ConfigError, JobError, RowConservationError, SparkInferError
from sparkinfer.jobs.accuracy import label_accuracy
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.progress import SCORE, Progress, WorkerReport
from sparkinfer.models.acceleration import Verdict, check_available
from sparkinfer.models.sources import ModelSource, resolve
from sparkinfer.models.statistics import ScoringStatistics
from sparkinfer.models.tasks import get_task
from sparkinfer.storage import join

Display = Callable[[Progress], AbstractContextManager[object]]
"""Shows a progress for as long as its context is open."""


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        output: folder with the scored Parquet files.
        rows: rows written, those with an error included.
        error_rows: rows among them that could not be scored.
        accuracy: share of right predictions among labelled, scored rows; None without labels.
        seconds: from the call to the end.
        phases: of these, what each part of the engine's work took: `score`, and before it
            `prepare` and `start` where an engine has them.
        workers: replicas that scored, and on what.
        verdict: how the model was run, and what was tried before.
        model_fingerprint: hash of the model's files.
        statistics: counts and seconds, summed over the workers that could report.
        reports: the last report of each worker.
    """

    output: str
    rows: int
    error_rows: int
    accuracy: float | None
    seconds: float
    phases: dict[str, float]
    workers: Workers
    verdict: Verdict
    model_fingerprint: str
    statistics: ScoringStatistics
    reports: Sequence[WorkerReport]

    @property
    def rows_per_s(self) -> float:
        """Rows per second of scoring."""
        scoring_s = self.phases.get(SCORE, 0.0)
        return self.rows / scoring_s if scoring_s else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """A run whose every precondition was checked."""

    config: ScoringConfig
    engine: Engine
    output: Output
    total_rows: int | None
    workers: Workers
    source: ModelSource
    verdict: Verdict


def run_job(config: ScoringConfig, engine: Engine, display: Display = nullcontext) -> RunResult:
    """Scores the input and publishes the output.

    Everything that can be wrong with the call is checked before the first row is read.

    Args:
        config: what to do; `output` is required.
        engine: what moves the rows.
        display: shows the progress while rows are scored.

    Raises:
        UsageError: the call cannot work; nothing was written.
        JobError: the job had started and failed; the output has no `_SUCCESS`.
    """
    started = time.monotonic()
    plan = _check(config, engine)
    plan.output.prepare()
    try:
        result = _score_and_publish(plan, display, started)
        plan.output.finish()
    except JobError:
        raise
    except SparkInferError as error:
        raise JobError(error.message) from error
    except Exception as error:
        raise JobError(f"{type(error).__name__}: {error}") from error
    return result


def _check(config: ScoringConfig, engine: Engine) -> _Plan:
    """Returns the plan of a run that can work; the cheapest checks come first."""
    if config.output is None:
        raise ConfigError("option 'output' is required; give --output FOLDER or output=...")
    get_task(config.task)
    check_available(config)
    output = Output(config.output, config.overwrite)
    output.check()
    table = engine.open_input()
    if table.path is not None:
        output.refuse_overlap(table.path)
    workers, source, verdict = choose_model_run(config, engine)
    return _Plan(config, engine, output, table.total_rows, workers, source, verdict)


def choose_model_run(config: ScoringConfig, engine: Engine) -> tuple[Workers, ModelSource, Verdict]:
    """Returns on what the model runs, its pinned files, and how it is run; the input is open."""
    workers = engine.find_workers()
    source = resolve(config.model, revision=config.revision, loading=config.loading)
    return workers, source, engine.run_gate(source)


def _score_and_publish(plan: _Plan, display: Display, started: float) -> RunResult:
    """Returns what was done, once every file is where readers look."""
    progress = Progress(plan.total_rows)
    unit = WorkUnit("all", plan.output.staging_folder(uuid.uuid4().hex))
    try:
        with display(progress):
            results = list(plan.engine.score([unit], plan.source, plan.verdict, progress))
            progress.end()
        rows, errors = _conserved_rows(plan.output, unit, results, plan.config.output_prefix)
        files = [name for result in results for name in result.files]
        paths = [join(unit.staging, name) for name in files]
        result = RunResult(
            output=str(plan.config.output),
            rows=rows,
            error_rows=errors,
            accuracy=label_accuracy(plan.config, plan.verdict.labels, paths),
            seconds=time.monotonic() - started,
            phases=progress.phases,
            workers=plan.workers,
            verdict=plan.verdict,
            model_fingerprint=plan.source.fingerprint,
            statistics=progress.statistics(),
            reports=progress.reports,
        )
        plan.output.record(json.dumps(result.as_dict(), indent=1))
        plan.output.publish(unit.staging, files)
    finally:
        plan.output.drop(unit.staging)
    return result


def _conserved_rows(
    output: Output, unit: WorkUnit, results: Sequence[UnitResult], prefix: str
) -> tuple[int, int]:
    """Returns the rows and the error rows in the staged files.

    Raises:
        RowConservationError: they are not the rows that were read.
    """
    read = sum(result.rows_read for result in results)
    files = [name for result in results for name in result.files]
    rows, unscored = output.count(unit.staging, files, prefix)
    if rows != read:
        raise RowConservationError(
            f"{read} rows were read and {rows} written; nothing was published. Run again; if it "
            "persists, the input changes while it is read"
        )
    return rows, unscored
