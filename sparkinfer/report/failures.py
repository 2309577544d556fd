"""Which rows could not be scored, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparkinfer.report.facts import ErrorSample, Facts
from sparkinfer.report.parts import (
    Number,
    Part,
    Section,
    Table,
    Unknown,
    in_thousands,
    percent,
    plural,
)


def failures(facts: Facts) -> Section:
    """Returns the errors by reason, and some rows for each."""
    status = facts.status
    if not status.errors:
        says = "No row has an error." if status.rows else "No row has been scored yet."
        return Section("Errors", says)
    says = f"{plural(status.errors, 'row')} of {status.rows_made:,} have an error"
    says += f" ({percent(status.errors / status.rows_made)})." if status.rows_made else "."
    return Section("Errors", says, (*_reasons(facts), *_samples(facts.samples)))


def _reasons(facts: Facts) -> Iterator[Part]:
    status = facts.status
    if not status.reasons:
        yield Unknown("By reason", "The reasons are not recorded in this output.")
        return
    most = max(status.reasons.values())
    rows: list[tuple[str, Number, Number]] = [
        (
            reason,
            Number(in_thousands(count), count / most),
            Number(percent(count / status.errors)),
        )
        for reason, count in status.reasons.items()
    ]
    others = status.errors - sum(status.reasons.values())
    if others > 0:
        rows.append(
            (
                "other reasons",
                Number(in_thousands(others), min(1.0, others / most)),
                Number(percent(others / status.errors)),
            )
        )
    yield Table("By reason", ("reason", "rows", "share"), rows, columns=3)


def _samples(samples: Sequence[ErrorSample]) -> Iterator[Part]:
    for reason in dict.fromkeys(sample.reason for sample in samples):
        rows = [sample.row for sample in samples if sample.reason == reason]
        names = list(dict.fromkeys(name for row in rows for name in row))
        if names:
            cells = [tuple(row.get(name, "") for name in names) for row in rows]
            says = f"{plural(len(rows), 'row')} with: {reason}"
            yield Table("Samples", names, cells, says, columns=3)
