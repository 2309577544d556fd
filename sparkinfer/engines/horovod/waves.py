"""Chunks that are prepared wave after wave: while ranks score one, the next one gets ready.

Ranks hold their slots of the cluster from the launch to the end, so that only slots which they
leave can prepare meanwhile. Where there are too few, all is prepared before the ranks start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sparkinfer.engines.deaths import Deaths
from sparkinfer.engines.horovod.prepare import PrepareJob
from sparkinfer.engines.horovod.prepare_stage import Beside, prepare
from sparkinfer.plan.chunks import Chunk
from sparkinfer.spark.accelerators import cores_per_task
from sparkinfer.spark.hosts import count_tasks
from sparkinfer.spark.slots import is_dynamic

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LEAST_RANK_ROWS = {"cpu": 1 << 12, "cuda": 1 << 16}
"""Rows of a wave for each rank, at least, by what the ranks run on: several seconds of work. A wave
costs a Spark job, and a rank looks for the next one every second, or every fifth."""


LEAST_SLOTS = {"cpu": 1 / 8, "cuda": 1.0}
"""Slots for each rank, by what the ranks run on, below which these would wait for tokens: a core
tokenises thousands of short texts/s, which a GPU scores in a second and a CPU in many."""


class Waves:
    """Prepares chunks, in one thread at a time.

    Args:
        spark: a classic session.
        chunks: in the order in which to prepare them.
        job: how.
        deaths: of workers over them.

    Attributes:
        lists: names of the lists of each prepared chunk's row groups, by the chunk's number.
    """

    def __init__(
        self, spark: SparkSession, chunks: Iterable[Chunk], job: PrepareJob, deaths: Deaths
    ) -> None:
        self.lists: dict[int, Sequence[str]] = {}
        self._spark = spark
        self._job = job
        self._deaths = deaths
        self._ranks = job.plan.workers.count
        least_rows = LEAST_RANK_ROWS[job.plan.workers.device_type]
        self._next = deque(cut_waves(chunks, self._ranks, least_rows))

    @property
    def are_left(self) -> bool:
        """Whether there are chunks that are not prepared."""
        return bool(self._next)

    def slots_beside(self) -> int:
        """Returns how many tasks can prepare while the ranks run, 0 if too few to keep up.

        Executors that come and go with the tasks are taken to leave none: there, tasks hold GPUs.
        """
        if is_dynamic(self._spark):
            return 0
        tasks = count_tasks(self._spark, cores_per_task(self._spark))
        return spare_slots(tasks, self._ranks, self._job.plan.workers.device_type)

    def prepare_before(self) -> None:
        """Prepares what must be ready before the ranks start: a wave, or all that is left.

        Raises:
            JobError: a task failed for good.
        """
        waves = 1 if self.slots_beside() else len(self._next)
        self._prepare(waves, None)

    def prepare_beside(self, beside: Beside) -> list[int]:
        """Prepares the next wave while the ranks run; returns the numbers of its chunks.

        Raises:
            JobError: a task failed for good, or the job was cancelled.
        """
        return self._prepare(1, beside)

    def _prepare(self, waves: int, beside: Beside | None) -> list[int]:
        chunks = [chunk for index in range(waves) for chunk in self._next[index]]
        lists = prepare(self._spark, chunks, self._job, self._deaths, beside)
        numbers = [chunk.number for chunk in chunks]
        self.lists |= {number: lists.get(number, ()) for number in numbers}
        for _ in range(waves):
            self._next.popleft()
        return numbers


def spare_slots(tasks: int, ranks: int, device_type: str) -> int:
    """Returns the slots that ranks leave, 0 if they are too few to keep up with them.

    Args:
        tasks: that run at a time.
        ranks: how many of them are ranks.
        device_type: what these run on.
    """
    spare = tasks - ranks
    return spare if spare >= ranks * LEAST_SLOTS[device_type] else 0


def cut_waves(chunks: Iterable[Chunk], ranks: int, least_rows: int) -> Iterator[list[Chunk]]:
    """Yields the chunks of each wave: at least one per rank, and so many rows per rank.

    Args:
        chunks: in order.
        ranks: how many there are.
        least_rows: for each of them.
    """
    wave: list[Chunk] = []
    filled = rows = 0
    for chunk in chunks:
        wave.append(chunk)
        filled, rows = filled + bool(chunk.rows), rows + chunk.rows
        if filled >= ranks and rows >= ranks * least_rows:
            yield wave
            wave, filled, rows = [], 0, 0
    if wave:
        yield wave
