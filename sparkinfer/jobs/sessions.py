"""What each call on an output did: `runs/NUMBER.json` in its work folder, for people.

Nothing that a run does depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sparkinfer.workers.statistics import ScoringStatistics

Outcome = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class SessionDevice:
    """What the workers on one device did in a session.

    Attributes:
        device: what the model ran on, with the host's name.
        statistics: counts and seconds, summed over its workers.
    """

    device: str
    statistics: ScoringStatistics


@dataclass(frozen=True)
class Session:
    """One call on an output, from its beginning to its end, however it ended.

    Attributes:
        number: of calls before that have such a record.
        started: when, ISO 8601 in UTC.
        outcome: how it ended; there is none of a process that was killed.
        reason: why it failed; empty otherwise.
        seconds: from the call to the end.
        phases: the seconds of each part, in order: those before the first row, too (`checks`,
            `session`, `gate`, …).
        engine: its name.
        workers: replicas that scored; 0: nothing was to do.
        device_type: `cpu` or `cuda`.
        rows: rows of the input that it committed.
        rows_before: rows that were done before it.
        retried_rows: rows with an error that it rescored.
        errors: rows with an error that it committed.
        devices: what each device did.
        timeline: seconds since the call and rows done by then, a few hundred points.
        verdict: how the model was run and what was tried, with the rates that were measured; of
            several models, by name.
        options: what was asked for and is not as it is by default, by dotted name; no secrets.
        versions: of Python, the package and the libraries that took part.
        hosts: kinds of the machines that scored, by name: cores, bytes of memory, devices.
        price_per_hour: of all machines together, as given; None: not given.
        mlflow_run: id of the run of MLflow that it wrote to; empty: none.
        lost_workers: worker processes that ended before their time.
        notes: what there was to know.
    """

    number: int
    started: str
    outcome: Outcome
    reason: str
    seconds: float
    phases: Mapping[str, float]
    engine: str
    workers: int
    device_type: str
    rows: int
    rows_before: int
    retried_rows: int
    errors: int
    devices: tuple[SessionDevice, ...]
    timeline: tuple[tuple[float, int], ...]
    verdict: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    price_per_hour: float | None = None
    mlflow_run: str = ""
    lost_workers: int = 0
    notes: tuple[str, ...] = ()
