"""A comparison as one HTML page, made as a report is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sparkinfer import __version__
from sparkinfer.comparing.differences import Differences
from sparkinfer.comparing.result import Comparison, ModelComparison, RowPair
from sparkinfer.comparing.table import bin_names, facts_of_sides, how_found, shown_setting
from sparkinfer.jobs.clock import utc_now
from sparkinfer.report import charts
from sparkinfer.report.head import Head
from sparkinfer.report.page import rendered
from sparkinfer.report.parts import (
    Cell,
    Number,
    Pairs,
    Part,
    Picture,
    Section,
    Table,
    in_thousands,
    percent,
    plural,
    table_of,
)

MOST_CHANGES = 30
"""Changes that are shown at once."""

MOST_TICKS = 7
"""Numbers at an axis."""


def page_of(found: Comparison) -> str:
    """Returns a comparison as HTML."""
    return rendered(
        "report.html",
        kind="comparison",
        source="the two outputs",
        head=_head(found),
        sections=tuple(_sections(found)),
        made=utc_now(),
        version=__version__,
    )


def _head(found: Comparison) -> Head:
    names = [side.output.rstrip("/").rpartition("/")[2] or side.output for side in found.sides]
    share, alone = found.unlike_share, sum(side.only_here for side in found.sides)
    state, colour = ("numbers", "main") if share is None else ("no change", "good")
    if share:
        state, colour = f"{percent(share)} of all rows differ", "warn"
    figures = [
        ("rows in both", in_thousands(found.rows)),
        ("in one alone", in_thousands(alone)),
        *(figure for model in found.models for figure in _figures(model)),
    ]
    return Head(" and ".join(names), state, colour, how_found(found), tuple(figures))


def _figures(model: ModelComparison) -> Iterator[tuple[str, str]]:
    of = f" of {model.name}" if model.name else ""
    if model.changed is not None:
        yield f"rows changed{of}", in_thousands(model.changed)
    for name, one in model.differences.items():
        yield f"largest difference {name}{of}", f"{one.largest:.3g}"


def _sections(found: Comparison) -> Iterator[Section]:
    yield _outputs(found)
    for number, model in enumerate(found.models):
        yield _model(str(number), model)
    yield _alone(found)


def _outputs(found: Comparison) -> Section:
    rows = [
        ("folder", *(side.output for side in found.sides)),
        *map(tuple, facts_of_sides(found.sides)),
    ]
    parts: list[Part] = [Table("", ("what", "A", "B"), rows)]
    if found.settings:
        settings = [
            (one.name, shown_setting(one.a), shown_setting(one.b)) for one in found.settings
        ]
        parts.append(Table("Settings that differ", ("setting", "A", "B"), settings))
    if found.notes:
        parts.append(Table("Notes", ("what there is to know",), [(note,) for note in found.notes]))
    return Section("The two outputs", "", parts)


def _model(name: str, found: ModelComparison) -> Section:
    parts: list[Part] = [*_changes(found)]
    parts += [_picture(f"{name}-{n}", *one) for n, one in enumerate(found.differences.items())]
    if found.differences:
        parts.append(_spreads(found.differences))
    facts = [(what, in_thousands(count)) for what, count in found.counts.items()]
    facts += [("labels that only A has", ", ".join(found.labels_a))] * bool(found.labels_a)
    facts += [("labels that only B has", ", ".join(found.labels_b))] * bool(found.labels_b)
    facts += [("note", note) for note in found.notes]
    if facts:
        parts.append(Pairs("Besides", facts))
    parts += _rows(f"Rows that differ most, by {found.measure}", found.largest)
    parts += _rows("Errors in one alone, for example", found.errors)
    return Section(f"{found.name}: {found.task}" if found.name else found.task, _says(found), parts)


def _says(found: ModelComparison) -> str:
    says = f"{plural(found.rows, 'row')} without an error in both"
    if found.changed is not None:
        says += f", {in_thousands(found.changed)} of them with another result"
    return (
        f"{says}. Errors: {in_thousands(found.errors_a)} only in A, "
        f"{in_thousands(found.errors_b)} only in B, {in_thousands(found.errors_both)} in both."
    )


def _changes(found: ModelComparison) -> Iterator[Part]:
    if found.changes:
        most = max(one.rows for one in found.changes)
        rows = [
            (one.before, one.after, Number(in_thousands(one.rows), one.rows / most))
            for one in found.changes[:MOST_CHANGES]
        ]
        more = len(found.changes) - len(rows)
        says = f"The most frequent ones; {more:,} more are not shown." if more else ""
        yield Table("What became of what", ("A", "B", "count"), rows, says)


def _picture(name: str, title: str, found: Differences) -> Picture:
    counts = found.histogram
    last = max(place for place, count in enumerate(counts) if count)
    shown, names = counts[: last + 1], bin_names()
    texts = ["0", *names[1:]][: last + 1]
    step = 1 + len(texts) // MOST_TICKS
    ticks = [(place + 0.5, text) for place, text in enumerate(texts)][::step]
    svg = charts.bars(f"differences{name}", shown, ticks, "difference up to")
    rows = [(names[at], Number(in_thousands(count))) for at, count in enumerate(shown)]
    says = (
        f"{in_thousands(found.equal)} of {plural(found.rows, 'row')} without any difference; "
        f"the largest is {found.largest:.3g}."
    )
    title = f"Differences: {title}"
    return Picture(title, says, svg, table_of(("difference up to", "rows"), rows))


def _spreads(found: Mapping[str, Differences]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, *(Number(f"{value:.3g}") for value in (one.mean, one.p99, one.largest)))
        for name, one in found.items()
    ]
    return Table("Differences in numbers", ("number", "mean", "99th percentile", "largest"), rows)


def _rows(title: str, found: Sequence[RowPair]) -> Iterator[Part]:
    if found:
        rows = [(_listed(one.row), _listed(one.a), _listed(one.b), _size(one)) for one in found]
        yield Table(title, ("row", "A", "B", "difference"), rows, columns=3)


def _size(row: RowPair) -> Number:
    return Number("–" if row.difference is None else f"{row.difference:.3g}", None, row.changed)


def _alone(found: Comparison) -> Section:
    parts: list[Part] = []
    for name, rows in (("A", found.only_a), ("B", found.only_b)):
        if rows:
            cells = [(_listed(row),) for row in rows]
            parts.append(Table(f"Only in {name}, for example", ("row",), cells, columns=3))
    says = "" if parts else "None."
    return Section("Rows in one alone", says, parts)


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
