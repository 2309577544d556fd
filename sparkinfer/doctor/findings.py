"""What checks find, and how it is shown to people and programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, TextIO

from sparkinfer import __version__
from sparkinfer.exceptions import SparkInferError
from sparkinfer.spark.errors import explain
from sparkinfer.terminal import printable

Status = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: name of the check.
        status: `error`: a run would fail; `warning`: it would be slower or different than expected;
            `skipped`: could not be checked.
        found: what was found, in one line and without secrets.
        advice: what to do; empty when ok or skipped.
    """

    check: str
    status: Status
    found: str
    advice: str


class Outcome(NamedTuple):
    """A finding without the name of its check."""

    status: Status
    found: str
    advice: str = ""


def judge(found: str, problems: Sequence[Outcome]) -> Outcome:
    """Returns ok with what was found, or all problems merged into one."""
    if not problems:
        return Outcome("ok", found)
    worst: Status = "error" if any(p.status == "error" for p in problems) else "warning"
    advice = dict.fromkeys(problem.advice for problem in problems)
    return Outcome(worst, "; ".join(problem.found for problem in problems), "; ".join(advice))


def as_outcome(error: Exception, remedy: str) -> Outcome:
    """Returns an error in two parts: what is wrong, and what to do."""
    if not isinstance(error, SparkInferError):
        return Outcome("error", f"{type(error).__name__}: {explain(error)}", remedy)
    found, advice = error.message, remedy
    for separator in (". Remedy: ", "; "):  # the last part of our messages says what to do
        if separator in error.message:
            found, _, advice = error.message.rpartition(separator)
            break
    cause = f" ({explain(error.__cause__)})" if isinstance(error.__cause__, Exception) else ""
    return Outcome("error", found + cause, advice)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Returns whether a run would fail."""
    return any(finding.status == "error" for finding in findings)


def print_findings(findings: Iterable[Finding], stream: TextIO) -> list[Finding]:
    """Prints each finding as it comes, then the counts; returns all findings."""
    printed = []
    for finding in findings:
        mark = "ERROR" if finding.status == "error" else finding.status
        print(f"{mark:<8} {finding.check:<11} {printable(finding.found)}", file=stream, flush=True)
        if finding.advice:
            print(f"{'':<20} -> {printable(finding.advice)}", file=stream, flush=True)
        printed.append(finding)
    counts = ", ".join(
        f"{count} {status}{'s' if count > 1 and status in ('warning', 'error') else ''}"
        for status, count in _summary(printed).items()
        if count
    )
    print(f"\n{len(printed)} checks: {counts}", file=stream, flush=True)
    return printed


def as_json(findings: Iterable[Finding]) -> str:
    """Returns the findings and their number by status as one JSON document."""
    listed = list(findings)
    document = {
        "sparkinfer": __version__,
        "findings": [asdict(finding) for finding in listed],
        "summary": _summary(listed),
    }
    return json.dumps(document, indent=1)


def _summary(findings: Sequence[Finding]) -> dict[str, int]:
    counts = Counter(finding.status for finding in findings)
    return {status: counts[status] for status in ("ok", "warning", "error", "skipped")}
