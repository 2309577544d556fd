"""The head of a page: how a run stands, in a sentence and a few figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparkinfer.plan.wording import format_seconds
from sparkinfer.report.asked import is_function, model_name
from sparkinfer.report.cost import cost_of
from sparkinfer.report.facts import Facts
from sparkinfer.report.pace import overall_rate
from sparkinfer.report.parts import in_thousands, percent, plural, rate_of
from sparkinfer.report.status import RunStatus
from sparkinfer.report.ways import way_of

FIRST_METRICS = ("accuracy", "f1_macro", "auc_roc", "f1", "pearson", "mae")
MOST_METRICS = 3
"""Metrics among the figures at the top."""

STATES = {
    "finished": "good",
    "running": "main",
    "ready to finish": "warn",
    "broken off": "warn",
}
"""Colours of states."""


@dataclass(frozen=True)
class Head:
    """What is seen first.

    Attributes:
        name: of the output.
        state: of the run, in a word or two.
        colour: of the state.
        says: how it stands.
        figures: names and values.
    """

    name: str
    state: str
    colour: str
    says: str
    figures: tuple[tuple[str, str], ...]


def head_of(facts: Facts, price_per_hour: float | None) -> Head:
    """Returns the head of a page."""
    status = facts.status
    name = status.output.rstrip("/").rpartition("/")[2] or status.output
    figures = tuple(_figures(facts, price_per_hour))
    says = " ".join(filter(None, (_how_far(status), _by(facts), _why_it_ended(facts))))
    return Head(name, *_state(facts), says, figures)


def _state(facts: Facts) -> tuple[str, str]:
    status = facts.status
    if status.state == "finished" and status.rows_made and status.errors == status.rows_made:
        return "finished, with errors alone", "bad"
    if status.state == "broken off" and facts.sessions and facts.sessions[-1].outcome != "finished":
        return facts.sessions[-1].outcome, "bad" if facts.sessions[-1].reason else "warn"
    return status.state, STATES.get(status.state, "warn")


def _how_far(status: RunStatus) -> str:
    if not status.total_rows:
        return "The input has no rows, and so has the output."
    of_all = f"{status.rows:,} of {plural(status.total_rows, 'row')}"
    if status.rows_made and status.errors == status.rows_made:
        done = plural(status.rows, "row")
        return f"None of the {done} that are done could be scored: each has an error."
    with_errors = (
        f"{status.errors:,} of them with an error" if status.errors else "none with an error"
    )
    if status.rows == status.total_rows:
        made = f", which gave {plural(status.rows_made, 'row')}" if _is_remade(status) else ""
        end = (
            " Only the mark of completion is missing." if status.state == "ready to finish" else ""
        )
        return f"All {plural(status.total_rows, 'row')} are done{made}, {with_errors}.{end}"
    share = percent(status.rows / status.total_rows)
    return f"{of_all} ({share}) are done, {with_errors}."


def _why_it_ended(facts: Facts) -> str:
    last = facts.sessions[-1] if facts.sessions else None
    if last is None or not last.reason or facts.status.state == "finished":
        return ""
    return f"The last call failed: {last.reason}"


def _is_remade(status: RunStatus) -> bool:
    return status.rows_made != status.rows


def _by(facts: Facts) -> str:
    """Returns what scored the rows, in a phrase."""
    names = [_named(facts, name) for name in facts.models]
    known = [name for name in names if name]
    if not known:
        return ""
    more = f" and {len(known) - 3:,} more" if len(known) > 3 else ""
    workers = facts.sessions[-1].workers if facts.sessions else 0
    on = f", {plural(workers, 'worker')} on {facts.sessions[-1].device_type}" if workers else ""
    return f"Scored by {', '.join(known[:3])}{more}{on}."


def _named(facts: Facts, name: str) -> str:
    model = facts.models[name]
    what = way_of(model) if is_function(model) else model_name(facts, name)
    short = what.rstrip("/").rpartition("/")[2] if what.startswith(("/", ".", "~")) else what
    return f"{name} ({short})" if name and short else short or name


def _figures(facts: Facts, price_per_hour: float | None) -> Iterator[tuple[str, str]]:
    status = facts.status
    yield "rows done", in_thousands(status.rows)
    if _is_remade(status):
        yield "rows made", in_thousands(status.rows_made)
    yield "with an error", in_thousands(status.errors)
    rate = overall_rate(facts)
    yield "rows/s of scoring", "not known" if rate is None else rate_of(rate)
    seconds = sum(session.seconds for session in facts.sessions)
    yield "time in all", format_seconds(seconds) if facts.sessions else "not known"
    if status.tokens:
        yield "tokens", in_thousands(status.tokens)
        yield "rows cut", in_thousands(status.truncated)
    yield from _metrics(facts)
    cost = cost_of(facts.sessions, price_per_hour)
    if cost is not None and cost.per_million is not None:
        yield "cost of a million rows", f"{cost.per_million:,.4g}"


def _metrics(facts: Facts) -> Iterator[tuple[str, str]]:
    shown = 0
    for name, model in facts.models.items():
        for metric in FIRST_METRICS:
            if metric in model.metrics and shown < MOST_METRICS:
                shown += 1
                title = metric.replace("_", " ")
                yield f"{title} of {name}" if name else title, f"{model.metrics[metric]:.4f}"
