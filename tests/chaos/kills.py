"""Runs the command, kills a rank of it at some moment, and looks at what is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from tests.tiny_models import sentences

RANKS = 2
ROWS = 60_000
LIMIT_S = 60.0
"""From a rank's death to the end of the command."""

POLL_S = 0.02
RUN_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class KilledRun:
    """A run of which a rank was killed.

    Attributes:
        rank: the one that was killed, None if the run had ended before the moment came.
        exit_code: of the command.
        seconds: from the kill to its end.
        message: what it printed to standard error.
    """

    rank: int | None
    exit_code: int
    seconds: float
    message: str


def write_input(path: Path) -> Path:
    """Writes rows with distinct texts: equal ones would be scored once, and soon be done."""
    texts = [f"{text} {number % 97}" for number, text in enumerate(sentences(ROWS))]
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), path)
    return path


def command(model: Path, source: Path, output: Path, engine: str, *more: str) -> list[str]:
    score = [sys.executable, "-m", "sparkinfer", "score", "--engine", engine, *more]
    files = ["--model", model, "--input", source, "--output", output, "--input-col", "text"]
    return [*score, *map(str, files), "--dtype", "float32", "--acceleration", "none"]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)


def run_and_kill(
    arguments: list[str], output: Path, rank: int, moment_s: float, states: tuple[str, ...]
) -> KilledRun:
    """Runs the command and kills a rank with SIGKILL.

    Args:
        arguments: the command.
        output: its output folder.
        rank: which rank.
        moment_s: seconds from when the rank is in one of the states.
        states: in which the clock starts.
    """
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        killed = _kill(process, output, rank, moment_s, states)
        since = time.monotonic()
        _, message = process.communicate(timeout=RUN_TIMEOUT_S)
    finally:
        process.kill()
    seconds = time.monotonic() - since
    return KilledRun(rank if killed else None, process.returncode, seconds, message)


def _kill(
    process: subprocess.Popen[str],
    output: Path,
    rank: int,
    moment_s: float,
    states: tuple[str, ...],
) -> bool:
    """Kills the rank; returns False if the command ended before."""
    due = None
    while process.poll() is None:
        state = _state(output, rank)
        if state is not None and state["state"] in states and due is None:
            due = time.monotonic() + moment_s
        if state is not None and due is not None and time.monotonic() >= due:
            if state["state"] == "done":
                return False
            os.kill(state["pid"], signal.SIGKILL)
            return True
        time.sleep(POLL_S)
    return False


def _state(output: Path, rank: int) -> dict | None:
    """Returns what a rank last said of itself, None before its first word."""
    for file in output.glob(f"_sparkinfer/staging/*/ranks/rank-{rank:05d}.json"):
        with contextlib.suppress(OSError, ValueError):  # cleared away meanwhile
            return json.loads(file.read_text())
    return None


def visible_files(output: Path) -> list[str]:
    """Returns the names that a reader of the output sees."""
    return [path.name for path in output.iterdir() if not path.name.startswith("_sparkinfer")]


def read_rows(output: Path) -> list[tuple[int, str, str]]:
    """Returns id, text and prediction of every row, by id."""
    table = pads.dataset(output, format="parquet").to_table(["id", "text", "prediction"])
    return [tuple(row.values()) for row in table.sort_by("id").to_pylist()]


def check_killed(outcome: KilledRun, output: Path) -> None:
    """Raises AssertionError unless the run ended as it must after a kill."""
    assert outcome.exit_code == 1, outcome
    assert outcome.seconds < LIMIT_S, outcome
    last = outcome.message.strip().splitlines()[-1]
    assert last.startswith(f"sparkinfer: error: rank {outcome.rank} (process "), outcome.message
    assert visible_files(output) == [], outcome
