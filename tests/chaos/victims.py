"""Finds the processes of one run of the command: which of them live, and which are at work."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

MARK = "SPARKINFER_CHAOS"
"""Environment variable that all processes of a chaos run inherit, whoever their parent is."""

WORKER, EXECUTOR, RANK, DRIVER = "worker", "executor", "rank", "driver"
"""A Python worker of Spark, an executor's JVM, a rank of the horovod engine, the command itself."""

BUSY_FOR_S = 0.1
"""A process that used the CPU within so long is at work."""


def marked(mark: str) -> Iterator[psutil.Process]:
    """Yields the living processes that have the mark in their environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                yield process


def end_marked(mark: str) -> None:
    """Kills whatever is left of the processes with a mark, this one excepted."""
    for process in marked(mark):
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.Error):
                process.kill()


class Victims:
    """The processes of one run of the command, and how far it is.

    Create it before the run has started: what earlier runs have staged is not the run's.

    Args:
        output: the run's output folder.
        mark: that its processes have.
    """

    def __init__(self, output: Path, mark: str) -> None:
        self._staging = output / "_sparkinfer" / "staging"
        self._mark = mark
        self._before = set(self._epochs())
        self._driver: psutil.Process | None = None

    def belong_to(self, pid: int) -> None:
        """Says which process the command is."""
        self._driver = psutil.Process(pid)

    def at_work(self, kind: str, far_enough: bool) -> list[psutil.Process]:
        """Returns the living processes of a kind, oldest first; none while no rows are scored.

        Args:
            kind: of process.
            far_enough: whether the run is as far as it should be. The workers of the horovod
                engine do not wait for that: they prepare the rows, before any is scored.
        """
        if kind == WORKER and (self._prepares() or (far_enough and self._scores_chunks())):
            return _busy(self._running("pyspark.daemon", is_fork=True))
        if not far_enough:
            return []
        if kind == RANK:
            return self._ranks()
        if self._scores_chunks() or self._ranks():
            if kind == EXECUTOR:
                return self._running("CoarseGrainedExecutorBackend")
            if kind == DRIVER and self._driver is not None:
                return [self._driver]
        return []

    def says_that_it_scores(self, pid: int) -> bool:
        """Returns whether that is the last word of a rank."""
        return any(s["pid"] == pid and s["state"] == "scoring" for s in self._rank_states())

    def _epochs(self) -> list[str]:
        return [folder.name for folder in self._staging.glob("[0-9]*")]

    def _folders(self) -> list[Path]:
        """Returns the folders in which this run stages: one, once it holds the lease."""
        return [self._staging / name for name in self._epochs() if name not in self._before]

    def _scores_chunks(self) -> bool:
        """Returns whether a chunk is in the hands of Spark tasks that score it."""
        return any(list(folder.glob("[0-9]*-*")) for folder in self._folders())

    def _prepares(self) -> bool:
        folders = [folder / "engine" for folder in self._folders()]
        return any(
            (folder / "prepared").exists() and not (folder / "ranks").exists() for folder in folders
        )

    def _ranks(self) -> list[psutil.Process]:
        scoring = {state["pid"] for state in self._rank_states() if state["state"] == "scoring"}
        return [process for process in self._own(marked(self._mark)) if process.pid in scoring]

    def _rank_states(self) -> list[dict]:
        states = []
        for folder in self._folders():
            for file in sorted(folder.glob("engine/ranks/*/rank-*.json")):
                with contextlib.suppress(OSError, ValueError):  # cleared away meanwhile
                    states.append(json.loads(file.read_text()))
        return states

    def _running(self, program: str, is_fork: bool = False) -> list[psutil.Process]:
        found = []
        for process in self._own(marked(self._mark)):
            with contextlib.suppress(psutil.Error):
                parent = process.parent()
                if _runs(process, program) and (not is_fork or (parent and _runs(parent, program))):
                    found.append(process)
        return found

    def _own(self, processes: Iterator[psutil.Process]) -> list[psutil.Process]:
        """Returns those that started after the command: earlier runs may leave some behind."""
        if self._driver is None:
            return []
        since = self._driver.create_time()
        own = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.create_time() > since:
                    own.append(process)
        return sorted(own, key=lambda process: (process.create_time(), process.pid))


def _runs(process: psutil.Process, program: str) -> bool:
    return any(program in word for word in process.cmdline())


def _busy(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Returns those that use the CPU now."""
    before = {process.pid: _cpu_s(process) for process in processes}
    time.sleep(BUSY_FOR_S)
    return [process for process in processes if _cpu_s(process) > before[process.pid]]


def _cpu_s(process: psutil.Process) -> float:
    """Returns the CPU seconds that a process has used, 0 once it has ended."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
