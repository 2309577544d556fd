"""What is known of an output, for the pages that show it: read from the output alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparkinfer.jobs.manifest import verdicts_of
from sparkinfer.jobs.records import ChunkRecord
from sparkinfer.jobs.sessions import Session, read_sessions
from sparkinfer.metrics.distributions import Distributions
from sparkinfer.report.own_metrics import labels_of, prefix_of, settings_by_model
from sparkinfer.report.samples import ErrorFiles, read_samples
from sparkinfer.report.status import RunStatus, status_of
from sparkinfer.report.survey import Survey
from sparkinfer.workers.statistics import ScoringStatistics, read_statistics


@dataclass(frozen=True)
class ChunkFacts:
    """A chunk that is done.

    Attributes:
        number: of the chunk.
        rows: rows of the input.
        errors: rows with an error.
        seconds: from its start until its files were complete, including waiting.
        finished: when, ISO 8601 in UTC.
        devices: rows by what the model ran on.
        statistics: counts and seconds of its rows, over all who scored them.
        attempts: how often it was recorded.
    """

    number: int
    rows: int
    errors: int
    seconds: float
    finished: str
    devices: Mapping[str, int]
    statistics: ScoringStatistics
    attempts: int


@dataclass(frozen=True)
class ModelFacts:
    """One of the models of an output, or its only one.

    Attributes:
        settings: those that determine its columns, by name.
        verdict: how it is run, and what was tried: the manifest's; empty if it is not known.
        labels: in the order of the probabilities.
        distributions: of its rows' lengths, labels and confidences.
        metrics: values by name.
        metrics_problem: why there are none although there are labels, else None.
        states: of the package's own metrics, added up: what the curves are drawn from.
    """

    settings: Mapping[str, Any]
    verdict: Mapping[str, Any]
    labels: tuple[str, ...]
    distributions: Distributions
    metrics: Mapping[str, float]
    metrics_problem: str | None
    states: Mapping[str, Any]


@dataclass(frozen=True)
class ErrorSample:
    """A row that could not be scored.

    Attributes:
        reason: why.
        row: its other columns, values shortened, by name.
    """

    reason: str
    row: Mapping[str, str]


@dataclass(frozen=True)
class Facts:
    """All that a page shows of one output.

    Attributes:
        status: what is done and what is missing.
        sessions: the calls that worked on it, in their order.
        chunks: what is done, by number.
        models: by name; a model alone, or a function, by an empty name.
        samples: of rows with an error, a few for each of the most frequent reasons.
    """

    status: RunStatus
    sessions: tuple[Session, ...]
    chunks: tuple[ChunkFacts, ...]
    models: Mapping[str, ModelFacts]
    samples: tuple[ErrorSample, ...]


def read_facts(output: str) -> Facts:
    """Returns what is known of an output, finished or not; changes nothing.

    Raises:
        OutputError: no run wrote there.
        ResumeError: its manifest is damaged.
    """
    seen = _Seen()
    survey = Survey(output, seen.add)
    reasons = [reason for reason, _ in survey.done.reasons.most_common()]
    prefixes = {
        name: prefix_of(settings) for name, settings in settings_by_model(survey.manifest).items()
    }
    samples = read_samples(output, seen.errors, reasons, prefixes)
    return Facts(
        status=status_of(survey),
        sessions=read_sessions(output, survey.manifest.run),
        chunks=tuple(seen.chunks),
        models=_models(survey, survey.done.distributions),
        samples=tuple(ErrorSample(reason, row) for reason, row in samples),
    )


class _Seen:
    """What the records say one by one."""

    def __init__(self) -> None:
        self.chunks: list[ChunkFacts] = []
        self.errors = ErrorFiles()

    def add(self, record: ChunkRecord) -> None:
        self.chunks.append(
            ChunkFacts(
                number=record.number,
                rows=record.rows_read,
                errors=record.errors,
                seconds=record.seconds,
                finished=record.finished,
                devices=record.devices,
                statistics=read_statistics(record.statistics),
                attempts=record.generation + 1,
            )
        )
        self.errors.add(record)


def _models(survey: Survey, distributions: Mapping[str, Distributions]) -> dict[str, ModelFacts]:
    manifest, metrics = survey.manifest, survey.metrics
    verdicts, measured, states = verdicts_of(manifest.verdict), metrics.by_model(), metrics.states()
    return {
        name: ModelFacts(
            settings=settings,
            verdict=verdicts.get(name, {}),
            labels=labels_of(manifest, name),
            distributions=distributions.get(name, Distributions()),
            metrics=measured[name].metrics,
            metrics_problem=measured[name].problem,
            states=states[name],
        )
        for name, settings in settings_by_model(manifest).items()
    }
