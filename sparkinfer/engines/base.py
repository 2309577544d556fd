"""The seam between a run and what moves its rows.

A run asks an engine three things, in this order: is the input there and as described, how should
the model be run, and score these units of work. A unit writes its files into a staging folder of
its own and readers do not see them; publishing is the run's business. Today a run is one unit; the
interface yields results in any order, so that an engine may have several in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from sparkinfer.jobs.progress import Progress
from sparkinfer.models.acceleration import Verdict
from sparkinfer.models.sources import ModelSource


@dataclass(frozen=True)
class InputTable:
    """What is known of the input before the job.

    Attributes:
        columns: names, in order.
        total_rows: rows, None where counting them would cost a pass over the data.
        path: where its files are, None for a table or a DataFrame.
    """

    columns: tuple[str, ...]
    total_rows: int | None
    path: str | None = None


@dataclass(frozen=True)
class Workers:
    """How many model replicas score at once, and on what.

    Attributes:
        kind: `cpu` or `cuda`.
        count: replicas.
    """

    kind: str
    count: int


@dataclass(frozen=True)
class WorkUnit:
    """A piece of the input that is scored, published and recorded as one; today the whole input.

    Attributes:
        unit_id: names the piece; the same piece has the same name in every attempt.
        staging: folder that receives its files; no reader looks there.
    """

    unit_id: str
    staging: str


@dataclass(frozen=True)
class UnitResult:
    """A unit that is scored: its files lie in its staging folder, whole.

    Attributes:
        unit_id: see `WorkUnit`.
        files: names of the Parquet files in the staging folder.
        rows_read: rows taken from the input for this unit.
    """

    unit_id: str
    files: tuple[str, ...]
    rows_read: int


class Engine(Protocol):
    """Moves rows from an input through scorers to Parquet files."""

    def open_input(self) -> InputTable:
        """Returns what the input holds.

        Raises:
            InputError: it is missing, unreadable or lacks a column.
        """

    def find_workers(self) -> Workers:
        """Returns the replicas that the run will use.

        Raises:
            EngineUnavailableError: an accelerator was asked for and is not there.
        """

    def run_gate(self, source: ModelSource) -> Verdict:
        """Returns how every worker is to run the model, tried in one worker."""

    def score(
        self,
        units: Iterable[WorkUnit],
        source: ModelSource,
        verdict: Verdict,
        progress: Progress,
    ) -> Iterator[UnitResult]:
        """Yields each unit once its files are written, in any order.

        Raises:
            JobError: a worker failed for good.
        """
