"""Draws numbers as SVG for a page: no text of the data's is in a drawing, only figures and axes.

Colours are those of the page, which has them for light and dark: they are drawn as placeholders and
become CSS variables. The same numbers give the same drawing. matplotlib is imported with the first
one, without pyplot, and its settings are left as they were.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, WIDE = 380, 200, 780
"""Of a drawing, in pixels of the page; on a phone a narrow one is as wide as the screen."""

INK, SOFT, LINE, MAIN, MAIN_SOFT, WARN = (f"#a0000{number}" for number in range(6))
SERIES = tuple(f"#b0000{number}" for number in range(5))
"""Placeholders of colours."""

_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    LINE: "line",
    MAIN: "main",
    MAIN_SOFT: "main-soft",
    WARN: "warn",
    **{colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)},
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": 11,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.xmargin": 0.01,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "xtick.labelsize": 11,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "text.color": SOFT,
}

Draw = Callable[["Axes"], None]


def drawn(name: str, draw: Draw, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Returns what a function draws on a pair of axes.

    Args:
        name: of the drawing, unique on its page.
        draw: draws.
        width: pixels.
        height: pixels.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style(name):
        figure = Figure((width / 72, height / 72), dpi=72, layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set_facecolor("none")
        draw(axes)
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing)
    return _for_page(written.getvalue(), name)


@contextmanager
def _style(name: str) -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        yield


def _for_page(svg: str, name: str) -> str:
    """Returns a drawing as a part of a page: with the page's colours, fonts and unique ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) (?:width="[^"]*pt")', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:height="[^"]*pt")', r"\1", svg)
    svg = re.sub(r"\s*font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = _with_own_ids(svg, name)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


def _with_own_ids(svg: str, name: str) -> str:
    """Returns a drawing whose ids are no other's, those that nothing refers to left out."""
    used = set(re.findall(r"#([\w-]+)(?=[)\"])", svg))

    def identify(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]*)"', identify, svg)
    return re.sub(r"(url\(|href=\")#([\w-]+)", rf"\1#{name}-\2", svg)


def line(
    name: str,
    points: Sequence[tuple[float, float]],
    x_label: str,
    marks: Sequence[float] = (),
    level: float | None = None,
    is_step: bool = False,
) -> str:
    """Returns a line over an area.

    Args:
        name: see `drawn`.
        points: of the line.
        x_label: of the horizontal axis.
        marks: places on it that are marked.
        level: height of a dashed line.
        is_step: whether it holds each height until the next point.
    """

    def draw(axes: Axes) -> None:
        x, y = zip(*points, strict=True)
        step: Any = "post" if is_step else None
        axes.fill_between(x, y, color=MAIN_SOFT, linewidth=0, step=step)
        axes.plot(x, y, color=MAIN, drawstyle="steps-post" if is_step else "default")
        for mark in marks:
            axes.axvline(mark, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
        if level is not None:
            axes.axhline(level, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        _from_zero(axes, x_label)

    return drawn(name, draw)


def bars(
    name: str,
    counts: Sequence[float],
    ticks: Sequence[tuple[float, str]],
    x_label: str,
    notable: Sequence[float] = (),
) -> str:
    """Returns a histogram.

    Args:
        name: see `drawn`.
        counts: height of each bar.
        ticks: places on the horizontal axis, in bars from its start, and what stands there.
        x_label: of the horizontal axis.
        notable: how much of each bar is drawn in another colour.
    """

    def draw(axes: Axes) -> None:
        places = [number + 0.5 for number in range(len(counts))]
        axes.bar(places, counts, width=0.88, color=MAIN, linewidth=0)
        if any(notable):
            axes.bar(places, notable, width=0.88, color=WARN, linewidth=0)
        axes.set_xlim(0, max(1, len(counts)))
        axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
        _from_zero(axes, x_label)

    return drawn(name, draw)


def band(
    name: str,
    places: Sequence[float],
    middles: Sequence[float],
    ranges: Sequence[tuple[float, float]],
    x_label: str,
) -> str:
    """Returns points, each with the range that it stands for, as a line in a band."""

    def draw(axes: Axes) -> None:
        low, high = zip(*ranges, strict=True)
        axes.fill_between(places, low, high, color=MAIN_SOFT, linewidth=0)
        axes.plot(places, middles, color=MAIN)
        _from_zero(axes, x_label)
        _whole_numbers(axes)

    return drawn(name, draw)


def dots(
    name: str,
    points: Sequence[tuple[float, float]],
    notable: Sequence[tuple[float, float]],
    x_label: str,
    level: float,
) -> str:
    """Returns points, some of them in another colour, and a dashed line at a height."""

    def draw(axes: Axes) -> None:
        for chosen, colour in ((points, MAIN), (notable, WARN)):
            if chosen:
                x, y = zip(*chosen, strict=True)
                axes.plot(x, y, "o", color=colour, markersize=4, markeredgewidth=0)
        axes.axhline(level, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        _from_zero(axes, x_label)
        _whole_numbers(axes)

    return drawn(name, draw)


def calibration(name: str, points: Sequence[tuple[float, float, float]]) -> str:
    """Returns a calibration curve.

    Args:
        name: see `drawn`.
        points: mean confidence, share that was right, and share of all rows, of each bin.
    """

    def draw(axes: Axes) -> None:
        confidence, right, weight = zip(*points, strict=True)
        axes.plot((0, 1), (0, 1), color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(confidence, right, color=MAIN, linewidth=1.2)
        sizes = [12 + 150 * one for one in weight]
        axes.scatter(confidence, right, s=sizes, color=MAIN, linewidths=0, zorder=3)
        _unit_square(axes, "confidence", "share right")

    return drawn(name, draw, height=260)


def roc(name: str, curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> str:
    """Returns ROC curves, of false and true positive rates, at most as many as `SERIES`."""

    def draw(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        for (false, true), colour in zip(curves, SERIES, strict=False):
            axes.plot(false, true, color=colour)
        _unit_square(axes, "false positive rate", "true positive rate")

    return drawn(name, draw, height=260)


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
    texts = ["0", "0.25", "0.5", "0.75", "1"]
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03), xlabel=x_label, ylabel=y_label)
    axes.set_xticks(ticks, texts)
    axes.set_yticks(ticks, texts)
    axes.grid(True, axis="x")


def _from_zero(axes: Axes, x_label: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shortly(value)))


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def shortly(value: float) -> str:
    """Returns a number as it stands at an axis: `950`, `1.5 k`, `20 M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
