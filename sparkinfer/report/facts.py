"""What is known of an output, for the pages that show it: read from the output alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparkinfer.jobs.sessions import Session
from sparkinfer.metrics.distributions import Distributions
from sparkinfer.report.status import RunStatus
from sparkinfer.workers.statistics import ScoringStatistics


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
        verdict: how it is run, and what was tried: the manifest's; empty for a function.
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
    """Returns what is known of an output, finished or not; changes nothing."""
    raise NotImplementedError(output)
