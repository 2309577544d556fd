"""How each model was run, and what was tried before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.tokens import NO_LIMIT
from sparkinfer.report.facts import ModelFacts
from sparkinfer.report.parts import Number, Pairs, Part, Table, Unknown, in_thousands

NOT_MEASURED = (
    "No speeds are recorded. They are measured for jobs with a mebibyte of text or more, and where "
    "more than one way passes in the same number format."
)


def way_parts(model: ModelFacts) -> Iterator[Part]:
    """Yields the verdict of the gate on a model, and the ways that it tried."""
    verdict = model.verdict
    accepted = _accepted(verdict)
    if not accepted:
        text = "What was tried before the job is not recorded in this output."
        yield Unknown("How it was run", text)
        return
    items = tuple((name, text) for name, text in _found(verdict, accepted) if text)
    yield Pairs("How it was run", items)
    yield from _tried(verdict, accepted)


def way_of(model: ModelFacts) -> str:
    """Returns how a model was run; empty if it is not known."""
    return _accepted(model.verdict)


def _accepted(verdict: Mapping[str, Any]) -> str:
    accepted = verdict.get("accepted")
    if isinstance(accepted, str):
        return accepted
    try:
        return str(Acceleration(**accepted)) if isinstance(accepted, Mapping) else ""
    except TypeError:  # of another version
        return ""


def _found(verdict: Mapping[str, Any], accepted: str) -> Iterator[tuple[str, str]]:
    device = str(verdict.get("device_model") or "")
    kind = str(verdict.get("device") or "")
    yield "way", accepted
    yield "tried on", device or kind
    yield "compared with", _compared(verdict)
    limit = verdict.get("max_length")
    if isinstance(limit, int):
        yield "texts are cut at", f"{limit:,} tokens" if limit < NO_LIMIT else "no length"
    yield (
        "batches",
        str(verdict.get("unpadded") or "")
        and (f"texts of unlike length share none: {verdict['unpadded']}"),
    )
    yield "memory", str(verdict.get("memory") or "")
    if verdict.get("is_remembered"):
        yield "found", "before, on the same node: it was not tried again"


def _compared(verdict: Mapping[str, Any]) -> str:
    if verdict.get("uncompared"):
        return f"nothing: {verdict['uncompared']}"
    difference, tolerance = verdict.get("max_difference"), verdict.get("tolerance")
    if difference is None or tolerance is None:
        return ""
    reference = verdict.get("reference", "float32")
    return f"{reference}: differs by {difference:.2g} at most, allowed is {tolerance:g}"


def _tried(verdict: Mapping[str, Any], accepted: str) -> Iterator[Part]:
    speeds = {str(name): float(rate) for name, rate in verdict.get("speeds") or ()}
    rejected = {str(name): str(why) for name, why in verdict.get("rejected") or ()}
    fastest = max(speeds.values(), default=0.0)
    head = ("way", "tokens/s", "what came of it")
    rows = []
    for way in dict.fromkeys([accepted, *speeds, *rejected]):
        speed = speeds.get(way)
        rate = Number("–") if speed is None else Number(in_thousands(speed), speed / fastest)
        rows.append((way, rate, _outcome(way, accepted, rejected)))
    says = "Tokens per second of one worker, padding excluded." if speeds else NOT_MEASURED
    if len(rows) > 1 or speeds:
        yield Table("What was tried", head, rows, says)


def _outcome(way: str, accepted: str, rejected: Mapping[str, str]) -> str:
    if way == accepted:
        return "taken"
    return f"not used: {rejected[way]}" if way in rejected else "not used: slower"
