"""A comparison as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparkinfer.comparing.differences import EDGES, Differences
from sparkinfer.comparing.result import Comparison, ModelComparison, RowPair, Side
from sparkinfer.messages import shortened
from sparkinfer.plan.wording import format_seconds
from sparkinfer.redaction import without_secrets
from sparkinfer.report.parts import rate_of
from sparkinfer.terminal import printable

BAR_WIDTH = 30
"""Characters of the longest bar of a histogram."""

MOST_CHANGES = 20
"""Changes that a terminal shows."""


def describe(comparison: Comparison, width: int) -> str:
    """Returns a comparison as lines of at most so many characters."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    page = _Lines(console)
    _add_outputs(page, comparison)
    for model in comparison.models:
        _add_model(page, model)
    for name, rows in (("A", comparison.only_a), ("B", comparison.only_b)):
        if rows:
            page.line(f"\nonly in {name}, for example")
            for row in rows:
                page.row(f"  {_listed(row)}")
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


class _Lines:
    """Writes text of others as it is: no markup, nothing that acts on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str) -> None:
        """Writes a sentence; one that begins with a line break is set off."""
        if text.startswith("\n"):
            self._console.print()
        self._console.print(_cell(text.removeprefix("\n")))

    def row(self, text: str) -> None:
        """Writes a line that is cut at the width."""
        self._console.print(_cell(text), no_wrap=True, overflow="ellipsis")

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Writes a table; columns whose head begins with a blank are of numbers."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for head in heads:
            justify: Any = "right" if head.startswith(" ") else "left"
            table.add_column(_cell(head.strip()), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*map(_cell, row))
        self._console.print(table)


def _cell(text: str) -> Text:
    return Text(printable(without_secrets(text)))


def _add_outputs(page: _Lines, found: Comparison) -> None:
    sides = found.sides
    page.table(
        ["", "A", "B"],
        [
            ["output", *(side.output for side in sides)],
            *facts_of_sides(sides),
            *([one.name, shown_setting(one.a), shown_setting(one.b)] for one in found.settings),
        ],
    )
    page.line(f"\n{how_found(found)}")
    for note in found.notes:
        page.line(f"note        {note}")


def how_found(found: Comparison) -> str:
    """Returns how many rows both outputs have, and by what they were found."""
    how = "the key" if found.is_key else "the values of"
    says = f"{found.rows:,} rows are in both, found by {how} {', '.join(found.columns)}."
    if not found.repeated:
        return says
    return (
        f"{says} {found.repeated:,} of them have the values of other rows; such rows were paired "
        "with one another in any order, those with equal results first."
    )


def facts_of_sides(sides: Sequence[Side]) -> Iterator[list[str]]:
    """Yields what is known of outputs: its name, then that of each."""
    speeds = [side.speed for side in sides]
    yield ["rows", *(f"{side.rows:,}, {side.state}" for side in sides)]
    yield ["only here", *(f"{side.only_here:,}" for side in sides)]
    yield ["rows/s", *(_known(one.rows_per_s, rate_of) for one in speeds)]
    yield ["time in all", *(_known(one.seconds, format_seconds) for one in speeds)]
    yield ["tokens", *(f"{one.tokens:,}" for one in speeds)]
    yield ["on", *(", ".join(one.devices) for one in speeds)]
    if any(one.cost_per_million is not None for one in speeds):
        costs = (_known(one.cost_per_million, lambda cost: f"{cost:,.4g}") for one in speeds)
        yield ["cost of a million rows", *costs]


def _known(value: float | None, shown: Callable[[float], str]) -> str:
    return "not known" if value is None else shown(value)


def shown_setting(value: Any) -> str:
    """Returns a setting as text, shortened."""
    return "-" if value is None else shortened(str(value), 80)


def _add_model(page: _Lines, found: ModelComparison) -> None:
    page.line(f"\n{found.name + ': ' if found.name else ''}{found.task}, {found.rows:,} rows")
    page.line(f"changed     {_changed(found)}")
    errors = (found.errors_a, found.errors_b, found.errors_both)
    if any(errors):
        page.line("errors      {:,} only in A, {:,} only in B, {:,} in both".format(*errors))
    for name, count in found.counts.items():
        page.line(f"            {count:,} {name}")
    for side, labels in (("A", found.labels_a), ("B", found.labels_b)):
        if labels:
            page.line(f"            labels that only {side} has: {', '.join(labels)}")
    for note in found.notes:
        page.line(f"note        {note}")
    if found.changes:
        shown = found.changes[:MOST_CHANGES]
        page.line("")
        page.table(["A", "B", " rows"], [[c.before, c.after, f"{c.rows:,}"] for c in shown])
        if len(found.changes) > len(shown):
            page.line(f"and {len(found.changes) - len(shown):,} more kinds of changes")
    _add_differences(page, found.differences)
    _add_rows(page, f"rows that differ most, by {found.measure}", found.largest)
    _add_rows(page, "errors in one alone, for example", found.errors)


def _changed(found: ModelComparison) -> str:
    if found.changed is None:
        return "not counted: results are numbers"
    share = found.changed / found.rows if found.rows else 0.0
    return f"{found.changed:,} of {found.rows:,} rows ({share:.4%})"


def _add_differences(page: _Lines, found: Mapping[str, Differences]) -> None:
    if not found:
        return
    page.line("")
    page.table(
        ["differences", " rows", " mean", " p99", " largest"],
        [
            [name, f"{one.rows:,}", f"{one.mean:.3g}", f"{one.p99:.3g}", f"{one.largest:.3g}"]
            for name, one in found.items()
        ],
    )
    for name, one in found.items():
        page.line(f"\n{name}")
        most = max(one.histogram)
        page.table(
            [" up to", " rows", ""],
            [
                [edge, f"{count:,}", "#" * -(-count * BAR_WIDTH // most)]
                for edge, count in zip(bin_names(), one.histogram, strict=True)
                if count
            ],
        )


def bin_names() -> list[str]:
    """Returns the upper ends of the bins of differences, for people."""
    return ["no difference", *(f"{edge:g}".replace("e-0", "e-") for edge in EDGES[1:]), "more"]


def _add_rows(page: _Lines, title: str, rows: Sequence[RowPair]) -> None:
    if not rows:
        return
    page.line(f"\n{title}")
    for row in rows:
        size = "" if row.difference is None else f"{row.difference:.3g}"
        page.line(f"{'changed ' if row.changed else ''}{size}".rstrip())
        page.row(f"    {_listed(row.row)}")
        page.row(f"  A {_listed(row.a)}")
        page.row(f"  B {_listed(row.b)}")


def _listed(values: Mapping[str, str]) -> str:
    return "  ".join(f"{name}={value}" for name, value in values.items())
