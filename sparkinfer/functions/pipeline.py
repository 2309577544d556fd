"""Functions one after the other, as a worker runs them: all but the last in child processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sparkinfer.functions.child_stage import ChildStage
from sparkinfer.functions.stages import (
    Finish,
    FunctionStage,
    Item,
    Stage,
    StageStatistics,
    chained,
)
from sparkinfer.functions.user_function import OpenFunction, UserFunction
from sparkinfer.workers.devices import make_current
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.suspects import Suspects
from sparkinfer.workers.watchdog import Activity


class OpenFunctions:
    """Functions that are ready: children that have started, and the last one, in this process.

    Args:
        functions: in the order in which rows go through them.
        keeps_failed: see `FunctionStage`.
        slot: what this process has been given; its GPU is the one that functions find without
            naming one.

    Raises:
        ConfigError: one is not found here, or its class cannot be constructed.
        JobError: a child has died.
    """

    def __init__(
        self, functions: Sequence[UserFunction], keeps_failed: bool, slot: WorkerSlot
    ) -> None:
        self._keeps_failed = keeps_failed
        self._before = [ChildStage(one, keeps_failed, slot) for one in functions[:-1]]
        try:
            for stage in self._before:  # their starts overlap with that of the last function
                stage.begin()
            make_current(slot.device)
            self._last: OpenFunction = functions[-1].open()
            for stage in self._before:
                stage.start()
        except BaseException:
            self.close()
            raise

    def start(self, finish: Finish | None = None) -> Pipeline:
        """Returns stages of the functions.

        Args:
            finish: for what the last one returns.
        """
        last = FunctionStage(self._last, self._keeps_failed, finish)
        return Pipeline(self._before, last)

    def close(self) -> None:
        """Ends the children, and what the last function started."""
        for stage in self._before:
            stage.close()
        last: OpenFunction | None = vars(self).get("_last")
        if last is not None:
            last.close()


class Pipeline:
    """Stages that rows stream through; see `Stage`.

    Args:
        before: those in processes of their own.
        last: that in this one.
    """

    def __init__(self, before: Sequence[Stage], last: FunctionStage) -> None:
        self._stages: tuple[Stage, ...] = (*before, last)
        self._last = last
        self._earlier = StageStatistics()
        for stage in before:
            self._earlier.add(stage.statistics)

    @property
    def suspects(self) -> Suspects:
        """Of the rows that the last function is given next."""
        return self._last.suspects

    @suspects.setter
    def suspects(self, suspects: Suspects) -> None:
        self._last.suspects = suspects

    @property
    def is_one_to_one(self) -> bool:
        """Whether each batch of the last function so far gave as many rows as it had."""
        return self._last.is_one_to_one

    @property
    def activities(self) -> tuple[Activity | None, ...]:
        """What each stage is doing."""
        return tuple(stage.activity for stage in self._stages)

    @property
    def statistics(self) -> StageStatistics:
        """What the stages did since this was made; the batches are those of the last one."""
        total = StageStatistics()
        for stage in self._stages:
            total.add(stage.statistics)
        found = total.since(self._earlier)
        found.batches = self._last.statistics.batches
        return found

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields what the functions make of the rows, in their order."""
        return chained(self._stages, items)
