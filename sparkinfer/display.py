"""Progress on the screen: a bar in a terminal or a notebook, lines of text or JSON elsewhere.

It is shown from the call to the end: what the run is at before the first row, then the rows.
An error in the display ends the display, never the run.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, TextIO, get_args

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sparkinfer.config import DisplayMode
from sparkinfer.exceptions import ConfigError
from sparkinfer.logs import get_logger
from sparkinfer.plan.phases import PHRASES, PUBLISH
from sparkinfer.plan.progress import Progress, ProgressState
from sparkinfer.plan.wording import describe_bottleneck, format_rate, format_seconds
from sparkinfer.terminal import printable

logger = get_logger(__name__)


BAR_INTERVAL_S = 0.5
NOTEBOOK_INTERVAL_S = 1.0
"""Time between two updates in a notebook: each is a message to the browser."""

LINES_INTERVAL_S = 10.0
"""Time between two plain lines, so that an hour's log stays readable."""

JSON_INTERVAL_S = 5.0

LOOK_INTERVAL_S = 0.2
"""Time between two looks for another phase, which is shown without waiting for the next update."""

SHOWN_AFTER_S = 1.0
"""How long a phase lasts before it gets a plain line."""

CLOSE_TIMEOUT_S = 2.0
"""How long the end of a run waits for a stream that nobody reads."""

MAX_DEVICES = 16
"""Devices that a bar lists; JSON has all."""

_States = Iterator[tuple[ProgressState, bool]]
"""The state at intervals, and whether it is the last one."""

_View = Callable[[_States], None]
"""Shows states until there are no more."""


@contextmanager
def live_display(
    progress: Progress, mode: DisplayMode = "auto", stream: TextIO | None = None
) -> Iterator[None]:
    """Shows the phase, then rows, rates, time left, errors and devices while the context is open.

    Args:
        progress: what is shown.
        mode: `bar` for a terminal or a notebook, `lines` of text, `json` with one object per line,
            `none`, or `auto`: a bar in a notebook or a terminal and lines elsewhere.
        stream: where to write; if not given, the notebook's cell or standard error.

    Raises:
        ConfigError: there is no such mode.
    """
    if mode not in get_args(DisplayMode):
        raise ConfigError(
            f"display mode {mode!r} is unknown; use one of {', '.join(get_args(DisplayMode))}"
        )
    done = threading.Event()
    thread = threading.Thread(target=_open(progress, mode, stream, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(CLOSE_TIMEOUT_S)


def _open(
    progress: Progress, mode: DisplayMode, stream: TextIO | None, done: threading.Event
) -> Callable[[], None]:
    """Returns a function that shows progress until `done`; call this in the cell's thread."""
    view: _View = _show_nothing
    interval_s = LINES_INTERVAL_S
    with contextlib.suppress(Exception):
        view, interval_s = _choose_view(mode, stream)

    def show() -> None:
        try:
            view(_states(progress, interval_s, done))
        except Exception:
            logger.debug("the progress display ended early", exc_info=True)

    return show


def _choose_view(mode: DisplayMode, stream: TextIO | None) -> tuple[_View, float]:
    """Returns the view that shows the states, and the seconds between two states."""
    if mode in ("auto", "bar") and stream is None and (notebook := _notebook()) is not None:
        # Not in the display's thread: an output belongs to the cell of the thread that creates it.
        handle = notebook.display(notebook.HTML("sparkinfer"), display_id=True)
        return partial(_show_in_notebook, notebook.HTML, handle), NOTEBOOK_INTERVAL_S
    stream = stream or sys.stderr
    if mode == "none" or stream is None:  # a process without a console has no standard error
        return _show_nothing, LINES_INTERVAL_S
    if mode == "json":
        return partial(_print_json, stream), JSON_INTERVAL_S
    if mode == "bar" or (mode == "auto" and _has_cursor(stream)):
        return partial(_show_bar, stream), BAR_INTERVAL_S
    return partial(_print_lines, stream), LINES_INTERVAL_S


def _has_cursor(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _notebook() -> Any:
    """Returns `IPython.display` if this process is a kernel (Jupyter, Databricks), else None.

    A kernel has loaded IPython; IPython in a terminal has no kernel.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None
    return importlib.import_module("IPython.display")


def _states(progress: Progress, interval_s: float, done: threading.Event) -> _States:
    """Yields the state now, at intervals, at the end, and where a phase begins or proves long."""
    phase, lasted_s, waited_s = progress.phase, 0.0, 0.0
    yield progress.state(), False
    pause_s = min(interval_s, LOOK_INTERVAL_S)
    while not done.wait(pause_s):
        waited_s += pause_s
        before_s, lasted_s = lasted_s, lasted_s + pause_s
        is_new, is_long = progress.phase != phase, before_s < SHOWN_AFTER_S <= lasted_s
        if is_new:
            phase, lasted_s = progress.phase, 0.0
        if is_new or is_long or waited_s >= interval_s:
            waited_s = 0.0
            yield progress.state(), False
    yield progress.state(), True


def _show_nothing(states: _States) -> None:
    """Shows nothing."""


def describe(state: ProgressState) -> str:
    """Returns the state as one line; empty if there is nothing to say."""
    if not _has_rows(state):
        return _phrase(state)
    of_total = f" of {state.total_rows:,}" if state.total_rows is not None else ""
    parts = [f"{state.rows:,}{of_total} rows"]
    if state.skipped_rows:
        parts[0] += f" ({state.skipped_rows:,} by an earlier run)"
    if state.total_chunks is not None:
        parts.append(f"{state.chunks:,} of {state.total_chunks:,} chunks")
    if state.rows_per_s:
        now = format_rate(state.rows_per_s_now)
        parts.append(f"{format_rate(state.rows_per_s)} ({now} now)")
    if state.eta_s:
        parts.append(f"{format_seconds(state.eta_s)} left")
    if state.errors:
        parts.append(f"{state.errors:,} with an error")
    if state.padding_share:
        parts.append(f"{state.padding_share:.1%} padding")
    if state.bottleneck:
        parts.append(f"bottleneck: {describe_bottleneck(state.bottleneck)}")
    if state.phase == PUBLISH:
        parts.append(_phrase(state))
    return ", ".join(parts)


def _has_rows(state: ProgressState) -> bool:
    """Returns whether there are rows of this run, or all was done before."""
    return state.rows > state.skipped_rows or (not state.phase and state.total_rows is not None)


def _phrase(state: ProgressState) -> str:
    """Returns what the run is at, and for how long if that is worth a word."""
    phrase = PHRASES.get(state.phase, state.phase)
    since = f" ({format_seconds(state.phase_s)})" if state.phase_s >= SHOWN_AFTER_S else ""
    return f"{phrase}{since}"


def describe_devices(state: ProgressState) -> list[str]:
    """Returns one line per device, its rows and current rate, for at most `MAX_DEVICES`."""
    lines = [
        f"{printable(device.device)}: {device.rows:,} rows, {format_rate(device.rows_per_s)} now"
        for device in state.devices[:MAX_DEVICES]
    ]
    if len(state.devices) > MAX_DEVICES:
        lines.append(f"and {len(state.devices) - MAX_DEVICES:,} more devices")
    return lines


def _print_lines(stream: TextIO, states: _States) -> None:
    introduced: set[str] = set()
    last = ""
    for state, is_last in states:
        if not _has_rows(state) and (is_last or state.phase_s < SHOWN_AFTER_S):
            continue
        lines = [
            f"running on {printable(device.device)}"
            for device in state.devices[:MAX_DEVICES]
            if device.device not in introduced
        ]
        introduced.update(device.device for device in state.devices[:MAX_DEVICES])
        if (line := describe(state)) != last:
            lines.append(line)
            last = line
        for text in lines:
            _print_line(stream, f"sparkinfer: {text}")


def _print_json(stream: TextIO, states: _States) -> None:
    for state, is_last in states:
        _print_line(stream, json.dumps(as_event(state, "end" if is_last else "progress")))


def _print_line(stream: TextIO, line: str) -> None:
    """Writes the line in one piece, since other processes may write to the same log."""
    stream.write(f"{line}\n")
    stream.flush()


def as_event(state: ProgressState, event: str) -> dict[str, Any]:
    """Returns the state as plain values, ready for JSON; None for what is unknown.

    Args:
        state: what is reported.
        event: `progress`, or `end` for the last one, also if the run failed.
    """
    values: dict[str, Any] = {"event": event, **asdict(state)}
    values["devices"] = [
        {"device": one.device, "rows": one.rows, "rows_per_s": round(one.rows_per_s, 3)}
        for one in state.devices
    ]
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in values.items()
    }


class _BarConsole(Console):
    """A console whose broken stream is an error like any other."""

    def on_broken_pipe(self) -> None:
        """Raises; rich would close the process's standard output and end the thread."""
        raise BrokenPipeError


def _show_bar(stream: TextIO, states: _States) -> None:
    # `force_terminal`: a bar was requested, or `_has_cursor` has chosen it.
    console = _BarConsole(file=stream, force_terminal=True, force_jupyter=False)
    # Without rich's own thread, so that an error of the stream is raised here. What the run prints
    # goes above the bar, unless it goes to a file.
    spinner = Spinner("dots")
    with Live(
        console=console,
        auto_refresh=False,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    ) as live:
        for state, is_last in states:
            live.transient = is_last and not _has_rows(state)
            live.update(_as_bar(state, spinner), refresh=True)


def _as_bar(state: ProgressState, spinner: Spinner) -> RenderableType:
    if not _has_rows(state):
        spinner.update(text=Text(describe(state)))
        return spinner
    bar = Table.grid(padding=(0, 1))
    total = state.total_rows
    bar.add_row(
        ProgressBar(total=total, completed=state.rows, width=40, pulse=total is None),
        f"{state.rows / total:.0%}" if total else "",
    )
    return Group(bar, Text(describe(state)), Text("\n".join(describe_devices(state)), style="dim"))


def _show_in_notebook(make_html: Callable[[str], Any], handle: Any, states: _States) -> None:
    """Updates one output in place: rich's live display needs ipywidgets, which may be missing.

    Source: https://rich.readthedocs.io/en/stable/progress.html (no automatic refresh in Jupyter).
    """
    for state, is_last in states:
        is_empty = is_last and not _has_rows(state)
        handle.update(make_html("" if is_empty else as_html(state)))


def as_html(state: ProgressState) -> str:
    """Returns the state as an HTML fragment with escaped texts."""
    is_known = state.total_rows is not None and _has_rows(state)
    known = f'value="{state.rows}" max="{state.total_rows}" ' if is_known else ""
    lines = [describe(state), *describe_devices(state)]
    text = "<br>".join(html.escape(line) for line in lines)
    return f'<div><progress {known}style="width: 24em"></progress><br>{text}</div>'
