"""A rank's place among the others, and what launchers run in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Placement:
    """A process's place in its world.

    Attributes:
        rank: 0 to world_size - 1.
        local_rank: the rank among the processes of its host.
        world_size: number of processes.
        gpu_address: the GPU that Spark assigned to it, None if Spark schedules none.
    """

    rank: int
    local_rank: int
    world_size: int
    gpu_address: str | None = None


class RankWork(Protocol):
    """What all ranks of a launch do; it can be pickled."""

    @property
    def world_size(self) -> int:
        """How many ranks there are."""

    def run(self, placement: Placement) -> None:
        """Does one rank's part, in that rank."""
