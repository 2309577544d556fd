"""What must hold of an output, while it is written and once it is done."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from sparkinfer.workers.suspects import DEADLY

TOLERANCE = 2e-5
"""Of a probability in float32, whatever batches its row was scored in."""

METRIC_TOLERANCE, COUNT_TOLERANCE = 1e-6, 1e-9
COUNTS = ("labelled_rows", "unknown_labels")
EXACT = ["id", "text", "label", "prediction", "n_tokens", "truncated", "error"]

LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Expected:
    """What an undisturbed run made of the input.

    Attributes:
        rows: the scored table, by id.
        metrics: over all its rows.
    """

    rows: pa.Table
    metrics: dict[str, float]


def read_output(output: Path) -> Expected:
    """Returns the rows and the metrics of an output that is done."""
    return Expected(
        pads.dataset(output, format="parquet").to_table().sort_by("id"), read_metrics(output)
    )


def read_metrics(output: Path) -> dict[str, float]:
    """Returns the metrics as the command line tells them."""
    command = [sys.executable, "-m", "sparkinfer", "status", str(output), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    metrics: dict[str, float] = json.loads(done.stdout)["metrics"]
    return metrics


def visible_files(output: Path) -> set[str]:
    """Returns the names of what a reader takes for data."""
    names = {path.name for path in output.glob("*")}
    return {name for name in names if not name.startswith(("_", "."))}


def recorded_files(output: Path) -> set[str]:
    """Returns the names of the files that a run has committed: of a chunk, its newest record's."""
    records = sorted(output.glob("_sparkinfer/chunks/[0-9]*.json"))  # NUMBER.GENERATION-RUN.json
    newest = {path.name.partition(".")[0]: path for path in records}
    return {name for path in newest.values() for name in json.loads(path.read_text())["files"]}


def has_lost_rows(output: Path) -> bool:
    """Returns whether rows have the error that a worker died over them."""
    errors = pads.dataset(output, format="parquet").to_table(columns=["error"])["error"]
    return DEADLY in errors.unique().to_pylist()


def check_done(output: Path, expected: Expected) -> None:
    """Raises AssertionError unless an output is what the undisturbed run made, and tidy."""
    found = read_output(output)
    assert found.rows["id"].equals(expected.rows["id"]), "ids lost or doubled"
    for name in EXACT:
        assert found.rows[name].equals(expected.rows[name]), name
    for name in ("probability", "probabilities"):
        assert largest_difference(found.rows[name], expected.rows[name]) <= TOLERANCE, name
    assert found.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        tolerance = COUNT_TOLERANCE if name in COUNTS else METRIC_TOLERANCE
        assert found.metrics[name] == pytest.approx(value, rel=0, abs=tolerance), name
    assert (output / "_SUCCESS").exists()
    differing = sorted(visible_files(output) ^ recorded_files(output))
    assert differing == [], f"files without a record, or without a file: {differing}"
    left = sorted(str(path) for path in output.glob("_sparkinfer/staging/**/*"))
    assert left == [], "staged files left"


def largest_difference(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> float:
    """Returns the largest difference of two columns of numbers, or of lists of them."""
    return max(map(abs, map(float.__sub__, _numbers(found), _numbers(expected))))


def _numbers(column: pa.ChunkedArray) -> list[float]:
    array = column.combine_chunks()
    numbers: list[float] = (array.flatten() if pa.types.is_list(array.type) else array).to_pylist()
    return numbers


@dataclass
class Reader:
    """Somebody who reads an output again and again while runs write it.

    Leaving the context raises what was wrong at any look.

    Attributes:
        output: the folder.
        total_rows: of the whole input.
        looks: how often it was looked at so far.
        rows: at the last look.
    """

    output: Path
    total_rows: int
    looks: int = 0
    rows: int = 0
    _ids: dict[tuple[str, int, int], list[int]] = field(default_factory=dict)
    _error: BaseException | None = None
    _closed: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Reader:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._thread.join()
        if error is None:
            self.check()

    def check(self) -> None:
        """Raises what was wrong at a look."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while self._error is None and not self._closed.wait(LOOK_EVERY_S):
            try:
                self.look()
            except FileNotFoundError:  # a run that goes on takes away what has no record
                continue
            except BaseException as error:
                self._error = error

    def look(self) -> None:
        """Reads every file whole; raises AssertionError if an id is there twice."""
        is_complete = (self.output / "_SUCCESS").exists()
        ids: list[int] = []
        for name in sorted(visible_files(self.output)):
            assert name.endswith(".parquet"), name
            ids += self._read(self.output / name)
        doubled = len(ids) - len(set(ids))
        assert doubled == 0, f"{doubled} ids are visible twice"
        still_complete = is_complete and (self.output / "_SUCCESS").exists()
        assert not still_complete or len(ids) == self.total_rows, "_SUCCESS before all rows"
        self.looks, self.rows = self.looks + 1, len(ids)

    def _read(self, path: Path) -> list[int]:
        state = path.stat()
        key = (path.name, state.st_ino, state.st_mtime_ns)
        if key not in self._ids:
            with path.open("rb") as file:
                self._ids[key] = pq.ParquetFile(file).read()["id"].to_pylist()
        return self._ids[key]
