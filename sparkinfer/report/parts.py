"""What a page is made of: sections of tables, pictures, lists and commands, all of plain values.

Texts in them are as they were found. Whatever shows them escapes them; see `report/page.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Number:
    """A cell with a number.

    Attributes:
        text: as it is shown.
        share: length of the bar behind it, 0 to 1; None: no bar.
        is_notable: whether it is to be seen first.
    """

    text: str
    share: float | None = None
    is_notable: bool = False
    kind: ClassVar[str] = "number"


@dataclass(frozen=True)
class Stack:
    """A cell with a bar of several colours.

    Attributes:
        pieces: name, colour and length of each, 0 to 1.
    """

    pieces: Sequence[tuple[str, str, float]]
    kind: ClassVar[str] = "stack"

    @property
    def text(self) -> str:
        """What the bar shows, in words."""
        return ", ".join(f"{name} {share:.0%}" for name, _, share in self.pieces)


Cell = str | Number | Stack


@dataclass(frozen=True)
class Table:
    """Rows under one another; the first cell of each names it.

    Attributes:
        title: heading; empty: what it stands in has one.
        head: names of the columns.
        rows: cells of each row.
        says: what there is to see in it.
        legend: names and colours of the pieces of stacks.
        columns: of the page that it takes, 1 to 3; a wider one scrolls where there is no room.
        is_closed: whether it is shown only when asked for.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    says: str = ""
    legend: Sequence[tuple[str, str]] = ()
    columns: int = 1
    is_closed: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A drawing, with all that it shows in words and numbers.

    Attributes:
        title: heading.
        says: what there is to see in it.
        svg: the drawing, markup that `report/charts.py` made.
        numbers: what is drawn.
        legend: names and colours.
    """

    title: str
    says: str
    svg: str
    numbers: Table
    legend: Sequence[tuple[str, str]] = ()
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Pairs:
    """Names and what stands for each.

    Attributes:
        title: heading.
        items: pairs of texts.
    """

    title: str
    items: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "pairs"


@dataclass(frozen=True)
class Matrix:
    """Rows by true label (down) and predicted label (across).

    Attributes:
        title: heading.
        says: how to read it.
        names: of the labels.
        counts: of rows, for each true label by predicted label.
        shares: of the true label's rows, 0 to 1; how dark a cell is.
    """

    title: str
    says: str
    names: Sequence[str]
    counts: Sequence[Sequence[str]]
    shares: Sequence[Sequence[float]]
    kind: ClassVar[str] = "matrix"

    @property
    def columns(self) -> int:
        """Columns of the page that it takes."""
        return 1 if len(self.names) <= 4 else 2 if len(self.names) <= 8 else 3


@dataclass(frozen=True)
class Commands:
    """What to do next.

    Attributes:
        title: heading.
        items: what for, and the command or the code.
    """

    title: str
    items: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "commands"


@dataclass(frozen=True)
class Unknown:
    """What would stand here if it were known.

    Attributes:
        title: heading; empty: none.
        text: why it is not known.
    """

    title: str
    text: str
    kind: ClassVar[str] = "unknown"


Part = Table | Picture | Pairs | Matrix | Commands | Unknown


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        title: heading.
        says: the most important of it, in a sentence or two.
        parts: what it shows.
    """

    title: str
    says: str
    parts: Sequence[Part] = ()


def table_of(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Returns the numbers of a picture."""
    return Table("", head, rows)


def in_thousands(number: float) -> str:
    """Returns a count for people."""
    return f"{number:,.0f}"


def percent(share: float) -> str:
    """Returns a share for people: `12.3 %`, and no zero for what is more than none."""
    if not share:
        return "0 %"
    if share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %")


def rate_of(rows_per_s: float) -> str:
    """Returns a rate for people."""
    digits = 0 if rows_per_s >= 100 else 1 if rows_per_s >= 10 else 2
    return f"{rows_per_s:,.{digits}f}"


def moment(iso: str) -> str:
    """Returns a time in UTC for people; another text as it is."""
    return re.sub(r"^(\S{10})T(\S{8})\S*\+00:00$", r"\1 \2 UTC", iso)


def plural(count: float, one: str, several: str | None = None) -> str:
    """Returns a count with the noun that goes with it."""
    return f"{count:,.0f} {one if count == 1 else several or f'{one}s'}"
