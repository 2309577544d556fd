"""Progress on the screen: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from sparkinfer.jobs.progress import PREPARE, START, Progress

REFRESH_S = 0.5
PLAIN_INTERVAL_S = 10.0
"""Between two plain lines: a log of an hour stays readable."""


@contextmanager
def live_display(progress: Progress, stream: TextIO | None = None) -> Iterator[None]:
    """Shows rows, rows/s, time left and each worker's device while the context is open.

    Args:
        progress: what is shown.
        stream: where to, standard error if not given.
    """
    stream = stream or sys.stderr
    show = _show_bar if stream.isatty() else _print_lines
    done = threading.Event()
    thread = threading.Thread(target=show, args=(progress, stream, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def describe(progress: Progress) -> str:
    """Returns the progress as one line."""
    of_total = f" of {progress.total_rows:,}" if progress.total_rows is not None else ""
    parts = [f"{progress.rows:,}{of_total} rows"]
    if progress.rows_per_s:
        parts.append(f"{progress.rows_per_s:,.0f} rows/s")
    if progress.eta_s is not None:
        parts.append(f"{format_seconds(progress.eta_s)} left")
    errors = progress.statistics().errors
    if errors:
        parts.append(f"{errors:,} with an error")
    return ", ".join(parts)


def describe_workers(progress: Progress) -> list[str]:
    """Returns one line per worker: its name, device and rows."""
    return [
        f"{report.worker}: {report.device}, "
        f"{report.statistics.rows + report.statistics.rows_in_window:,} rows"
        for report in progress.reports
    ]


def format_seconds(seconds: float) -> str:
    """Returns a duration for people: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _show_bar(progress: Progress, stream: TextIO, done: threading.Event) -> None:
    bar = Bar(BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    task = bar.add_task("starting workers", total=progress.total_rows)
    console = Console(file=stream)
    with Live(bar, console=console, refresh_per_second=4) as live:
        while not done.wait(REFRESH_S):
            description = describe(progress) if progress.rows else _before_first_row(progress)
            bar.update(task, completed=progress.rows, description=description)
            live.update(Group(bar, _worker_lines(progress)))
        bar.update(task, completed=progress.rows, description=describe(progress))
        live.update(Group(bar, _worker_lines(progress)))


def _before_first_row(progress: Progress) -> str:
    waits = {PREPARE: "tokenising the input", START: "starting the workers"}
    return waits.get(progress.phase, "loading the model")


def _worker_lines(progress: Progress) -> Text:
    return Text("\n".join(describe_workers(progress)), style="dim")


def _print_lines(progress: Progress, stream: TextIO, done: threading.Event) -> None:
    introduced: set[str] = set()
    while not done.wait(PLAIN_INTERVAL_S):
        for report in progress.reports:
            if report.worker not in introduced:
                introduced.add(report.worker)
                print(f"sparkinfer: {report.worker} runs on {report.device}", file=stream)
        if progress.rows:
            print(f"sparkinfer: {describe(progress)}", file=stream, flush=True)
