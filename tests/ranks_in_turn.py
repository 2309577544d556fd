"""Ranks of the horovod engine without a launch."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from sparkinfer.engines.horovod.rank import Placement, RankJob, run_rank

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class RanksInTurn:
    """Stands for a launcher: the ranks run in this process, one after the other.

    For what is the same however ranks are started: a launch takes many seconds.
    """

    def __init__(self, spark: SparkSession, start_timeout_s: int) -> None:
        pass

    def check(self, kind: str) -> None:
        pass

    def launch(self, job: RankJob, kind: str) -> None:
        for rank in range(job.world_size):
            run_rank(pickle.loads(pickle.dumps(job)), Placement(rank, rank, job.world_size))

    def cancel(self) -> None:
        pass
