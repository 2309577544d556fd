"""What a run is about to do, decided on the driver; engines and workers follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparkinfer.metrics.several import Measures
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.processor import ProcessorSpec
from sparkinfer.rows.reading import ChunkReader, InputFolders

LEAST_ROWS = {"cpu": 128, "cuda": 4096}
"""Worth a worker of their own: their first window costs as much as about a second of rows."""


@dataclass(frozen=True)
class Workers:
    """How many model replicas score in parallel, and on what.

    Attributes:
        device_type: `cpu` or `cuda`.
        count: replicas.
        cores: CPU cores of each.
        gpus_each: GPUs of each, if they are on GPUs.
        on_host: how many of them share the memory of a host; at least those known of.
        most: replicas that there may be once the cluster has grown; 0: no more than now.
    """

    device_type: str
    count: int
    cores: int = 1
    gpus_each: int = 1
    on_host: int = 1
    most: int = 0

    @property
    def tasks(self) -> int:
        """Tasks among which rows are shared out, so that a cluster grows for those that wait."""
        return max(self.count, self.most)

    def spread(self, rows: int) -> int:
        """Returns among how many workers this many rows are shared."""
        return max(1, min(self.tasks, math.ceil(rows / LEAST_ROWS[self.device_type])))


@dataclass(frozen=True)
class Plan:
    """How chunks are scored; small and picklable.

    Attributes:
        processor: what scores the rows, tried out and decided.
        columns: what is read, kept and added.
        measure: which metrics are computed from the scored rows.
        read_from: folders of the chunks' files.
        staging: folder for the engine's own temporary files.
        workers: what scores.
        stall_timeout_s: seconds after which a worker that hangs is killed; None: never.
        step_timeout_s: seconds without a move after which a step before that is given up; likewise.
        notes: folder for what workers note of their chunks; see `Suspects`.
    """

    processor: ProcessorSpec
    columns: Columns
    measure: Measures
    read_from: InputFolders
    staging: str
    workers: Workers
    stall_timeout_s: float | None = None
    step_timeout_s: float | None = None
    notes: str = ""

    @property
    def reader(self) -> ChunkReader:
        """Reads chunks with the columns of the run."""
        return ChunkReader(self.read_from, self.columns.read)
