"""What each call on an output did: `runs/NUMBER-RUN.json` in its work folder, for people.

Nothing that a run does depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from sparkinfer.jobs.sealed import DamagedError, OtherVersionError, seal, unseal
from sparkinfer.logs import get_logger
from sparkinfer.storage import (
    WORK_FOLDER,
    join,
    make_folder,
    names_in,
    read_bytes,
    remove,
    replace_text,
)
from sparkinfer.workers.statistics import ScoringStatistics, read_statistics

logger = get_logger(__name__)

SESSIONS_FOLDER = "runs"

SESSION_NAME = re.compile(r"(\d{6,})(?:-([0-9a-f]{8}))?\.json")
"""Number of the session, id of the run (none: an older version began it)."""

MOST_SESSIONS = 1_000
"""Sessions that are kept of an output, the latest ones: a scheduled task goes on for years."""

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
        timeline: seconds since the call and rows done by then, those before it included, a few
            hundred points. Of a call that only rescored rows, those rows.
        verdict: how the model was run and what was tried, with the rates that were measured; of
            several models, by name.
        options: what was asked for and is not as it is by default, by dotted name; no secrets.
        versions: of Python, the package and the libraries that took part.
        hosts: kinds of the machines that scored, by name: `cores`, `memory_bytes`, `cpu`, and
            `gpus` by torch's names for them; none where workers could not tell.
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


def next_session(output: str) -> int:
    """Returns the number of an output's next session."""
    return max((number for number, _ in _known(output)), default=-1) + 1


def write_session(output: str, run: str, session: Session) -> None:
    """Writes what a call did, and removes the oldest sessions if there are too many.

    Args:
        output: the output folder.
        run: id of the run that the call was on.
        session: what it did.

    Raises:
        Exception: whatever the store raises.
    """
    make_folder(join(output, WORK_FOLDER, SESSIONS_FOLDER))
    values = asdict(session)
    values["devices"] = [
        {"device": one.device, "statistics": one.statistics.state()} for one in session.devices
    ]
    replace_text(_path(output, session.number, run), seal(values))
    for number, of_run in _known(output):
        if number <= session.number - MOST_SESSIONS:
            remove(_path(output, number, of_run))


def read_sessions(output: str, run: str) -> tuple[Session, ...]:
    """Returns the sessions of one run of an output in their order; damaged ones are logged."""
    paths = [_path(output, number, of) for number, of in sorted(_known(output)) if of == run]
    found = (_read(path) for path in paths)
    return tuple(session for session in found if session is not None)


def sessions_of_others(output: str, run: str) -> list[str]:
    """Returns the paths of the sessions of all runs but one."""
    return [_path(output, number, of) for number, of in _known(output) if of != run]


def _known(output: str) -> list[tuple[int, str]]:
    """Returns the numbers of an output's sessions and the ids of their runs."""
    names = names_in(join(output, WORK_FOLDER, SESSIONS_FOLDER))
    matches = (SESSION_NAME.fullmatch(name) for name in names)
    return [(int(match[1]), match[2] or "") for match in matches if match]


def _path(output: str, number: int, run: str) -> str:
    suffix = f"-{run}" if run else ""
    return join(output, WORK_FOLDER, SESSIONS_FOLDER, f"{number:06d}{suffix}.json")


def _read(path: str) -> Session | None:
    try:
        session = _session(unseal(read_bytes(path) or b""))
        _check(session)
    except (DamagedError, OtherVersionError, TypeError, ValueError, KeyError, AttributeError) as e:
        logger.warning("%s is damaged (%s); it is passed over", path, e)
        return None
    return session


def _session(values: dict[str, Any]) -> Session:
    devices = tuple(
        SessionDevice(one["device"], read_statistics(one["statistics"]))
        for one in values.pop("devices")
    )
    timeline = tuple((float(at_s), int(rows)) for at_s, rows in values.pop("timeline"))
    notes = tuple(values.pop("notes", ()))
    return Session(**values, devices=devices, timeline=timeline, notes=notes)


def _check(session: Session) -> None:
    """Raises DamagedError, or what Python does, if a value is not of its kind."""
    datetime.fromisoformat(session.started)
    counts = ("number", "workers", "rows", "rows_before", "retried_rows", "errors", "lost_workers")
    numbers = [session.seconds, *session.phases.values(), *(getattr(session, n) for n in counts)]
    numbers += [] if session.price_per_hour is None else [session.price_per_hour]
    for value in numbers:
        if type(value) not in (int, float) or not value >= 0:
            raise DamagedError(f"it holds {value!r}, expected a number from 0")
    if session.outcome not in get_args(Outcome):
        raise DamagedError(f"its outcome is {session.outcome!r}")
    states = (session.verdict, session.options, session.versions, *session.hosts.values())
    if not all(isinstance(state, Mapping) for state in states):
        raise DamagedError("its verdict, options, versions or hosts are of another kind")
    texts = (session.reason, session.engine, session.device_type, session.mlflow_run)
    if not all(isinstance(text, str) for text in (*texts, *session.notes)):
        raise DamagedError("it holds something else than a text")
