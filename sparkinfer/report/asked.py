"""What was asked of a run, and the calls that worked on it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkinfer.jobs.sessions import Session
from sparkinfer.plan.wording import format_seconds
from sparkinfer.report.facts import Facts, ModelFacts
from sparkinfer.report.parts import (
    Cell,
    Number,
    Pairs,
    Part,
    Section,
    Table,
    Unknown,
    in_thousands,
    moment,
    plural,
    rate_of,
)

MOST_CALLS = 20
"""Calls that are listed, the last ones: a scheduled job has hundreds."""

_SHOWN = re.compile(
    r"input|output|engine|fn\.function|(models\.[^.]+\.)?"
    r"(model|task(\..*)?|generation\..*|input_col|input_template|text_pair_col|label_col)"
)
"""Options that are shown as what was asked of the job or of a model."""

NO_CALLS = (
    "No call on this output has left a record: they were killed, or an older version of the "
    "package made it."
)


def asked(facts: Facts) -> Section:
    """Returns what was asked: model, task, input, output, options."""
    parts: list[Part] = [Pairs("Job", tuple(_job(facts)))]
    for name, model in facts.models.items():
        parts.append(Pairs(f"Model {name}" if name else _kind(model), tuple(_model(facts, name))))
    parts += _options(facts.sessions)
    return Section("What was asked", "", parts)


def _kind(model: ModelFacts) -> str:
    return "Function" if is_function(model) else "Model"


def is_function(model: ModelFacts) -> bool:
    """Returns whether a function made the rows, not a model."""
    return "fn" in model.settings


def _job(facts: Facts) -> Iterator[tuple[str, str]]:
    status, settings = facts.status, facts.status.settings
    yield "input", shown_value(settings.get("input"))
    if settings.get("input_version") is not None:
        yield "version of the input", shown_value(settings["input_version"])
    yield "output", status.output
    columns = settings.get("columns")
    if isinstance(columns, Mapping):
        yield "kept columns", ", ".join(map(str, columns)) or "none"
    if status.vector_store is not None:
        chunks = f"{status.vector_chunks:,} of {plural(status.chunks, 'chunk')}"
        yield "vector store", f"{status.vector_store} ({chunks} arrived there)"
    if settings.get("delta.table"):
        yield "Delta table", shown_value(settings["delta.table"])
    yield "began", moment(status.created)
    if facts.sessions:
        last = facts.sessions[-1]
        yield "engine", last.engine
        yield "workers", f"{last.workers:,} on {last.device_type}" if last.workers else "none"


def _model(facts: Facts, name: str) -> Iterator[tuple[str, str]]:
    settings = facts.models[name].settings
    if "fn" in settings:
        for function in settings["fn"] or ():
            yield "function", shown_value(function)
        yield "reads", shown_value(settings.get("fn.input_cols")) or "all columns"
        if settings.get("fn.schema"):
            yield "makes", shown_value(settings["fn.schema"])
        return
    yield "model", model_name(facts, name) or "not known: no call has left a record of it"
    fingerprint = settings.get("model_fingerprint")
    if fingerprint:
        yield "fingerprint", str(fingerprint)[:12]
    yield "task", shown_value(settings.get("task")) or "not known"
    yield from _texts(settings)
    if settings.get("label_col"):
        yield "true labels", f"column {settings['label_col']}"
    for key, value in settings.items():
        if key.startswith(("task.", "generation.")) and not _is_long(value):
            yield key, shown_value(value)


def _texts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, name in (
        ("input_col", "text"),
        ("input_template", "text, made of"),
        ("text_pair_col", "second text"),
        ("preprocess", "changed by"),
        ("output_prefix", "prefix of its columns"),
    ):
        if settings.get(key):
            yield name, shown_value(settings[key])


def _is_long(value: Any) -> bool:
    return value in (None, "", [], {}) or len(shown_value(value)) > 200


def model_name(facts: Facts, name: str) -> str:
    """Returns what was given as the model, by the last call that says so; empty if none does."""
    key = f"models.{name}.model" if name else "model"
    given = (session.options.get(key) for session in reversed(facts.sessions))
    return next((one for one in given if isinstance(one, str)), "")


def shown_value(value: Any) -> str:
    """Returns a setting as text: what is text as it is, all else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _options(sessions: Sequence[Session]) -> Iterator[Part]:
    if not sessions:
        yield Unknown("Options", NO_CALLS)
        return
    names = dict.fromkeys(name for session in sessions for name in session.options)
    rows = [(name, _value(sessions, name)) for name in names if not _SHOWN.fullmatch(name)]
    title = "Further options"
    if rows:
        yield Table(title, ("option", "value"), rows)
    else:
        yield Unknown(title, "All others are as by default.")


def _value(sessions: Sequence[Session], name: str) -> str:
    """Returns the value of an option, of each call if they differ."""
    values = [
        shown_value(one.options[name]) if name in one.options else "default" for one in sessions
    ]
    if len(set(values)) == 1:
        return values[0]
    last = len(values) - 1
    before = next(values[at] for at in range(last, -1, -1) if values[at] != values[last])
    return f"{values[last]} (in an earlier call: {before})"


def calls(facts: Facts) -> Section:
    """Returns the calls that worked on the output."""
    sessions = facts.sessions
    if not sessions:
        return Section("Calls", NO_CALLS)
    shown = sessions[-MOST_CALLS:]
    rows = tuple(_call(session) for session in shown)
    head = (
        *("call", "began", "ended", "engine", "workers", "rows", "errors", "rescored"),
        *("lost workers", "time", "rows/s of scoring"),
    )
    says = "Rows count once they are committed; rescored ones had an error before."
    if len(shown) < len(sessions):
        says = f"The last {len(shown)} of {len(sessions):,} calls. {says}"
    parts: list[Part] = [Table("", head, rows, says, columns=3)]
    notes = tuple(dict.fromkeys(note for session in shown for note in session.notes))
    if notes:
        parts.append(Table("Notes", ("what there was to know",), [(note,) for note in notes]))
    ids = [(f"call {one.number + 1}", one.mlflow_run) for one in shown if one.mlflow_run]
    if ids:
        parts.append(Pairs("Runs of MLflow", ids))
    return Section("Calls", _unrecorded(facts), parts)


def _unrecorded(facts: Facts) -> str:
    """Returns what is to be said of calls without a record."""
    recorded = sum(session.rows for session in facts.sessions)
    missing = facts.status.rows - recorded
    if missing <= 0:
        return ""
    return (
        f"{plural(missing, 'row')} of the input were committed by calls that left no record: they "
        "were killed, or an older version made them. Their time is not in the figures below."
    )


def _call(session: Session) -> tuple[Cell, ...]:
    workers = f"{session.workers:,} × {session.device_type}" if session.workers else "none"
    outcome = f"{session.outcome}: {session.reason}" if session.reason else session.outcome
    rate = scoring_rate([session])
    return (
        str(session.number + 1),
        moment(session.started),
        outcome,
        session.engine,
        workers,
        Number(in_thousands(session.rows)),
        Number(in_thousands(session.errors), is_notable=session.errors > 0),
        Number(in_thousands(session.retried_rows)),
        Number(in_thousands(session.lost_workers), is_notable=session.lost_workers > 0),
        Number(format_seconds(session.seconds)),
        Number("–" if rate is None else rate_of(rate)),
    )


def scoring_rate(sessions: Sequence[Session]) -> float | None:
    """Returns rows per second of scoring, over those calls whose time for it is known."""
    timed = [session for session in sessions if session.phases.get("score")]
    seconds = sum(session.phases["score"] for session in timed)
    rows = sum(session.rows + session.retried_rows for session in timed)
    return rows / seconds if rows and seconds else None
