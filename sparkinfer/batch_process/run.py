"""A run: starts or resumes, launches ranks until all is committed, and pauses.

Everything of it is in `OUTPUT/_sparkinfer/processor`; who holds the output's lease is its driver.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sparkinfer.batch_process.commits import (
    Commit,
    CommitLog,
    folder_of,
    read_commits,
)
from sparkinfer.batch_process.launchers import RankDiedError
from sparkinfer.batch_process.pause import PausedError, pause_heard
from sparkinfer.batch_process.rank import LAUNCHES, BatchRankJob
from sparkinfer.batch_process.rounds import DriverRounds
from sparkinfer.engines.horovod.launchers import Launcher
from sparkinfer.engines.horovod.supervision import Supervisor
from sparkinfer.exceptions import JobError, OutputError, ResumeError
from sparkinfer.jobs.insistence import Insistence
from sparkinfer.jobs.lease import Lease
from sparkinfer.jobs.sealed import DamagedError, OtherVersionError, seal, unseal
from sparkinfer.logs import get_logger
from sparkinfer.messages import shown
from sparkinfer.storage import (
    WORK_FOLDER,
    join,
    make_folder,
    names_in,
    read_bytes,
    remove,
    rename_folder,
    replace_text,
)

logger = get_logger(__name__)

RUN_FILE, INPUT = "run.json", "input"

DEATHS_IN_A_ROW = 3
"""Of ranks, without a commit in between, after which a call gives up."""

START_TIMEOUT_S = 600
"""Within which all ranks must have started; as Horovod's default."""


@dataclass(frozen=True)
class ReportedMetrics:
    """What one call of `report_metrics` has reported, or the reducers at the end.

    Attributes:
        group: as given; `validation` for the reducers'.
        steps_completed: as given.
        metrics: by name.
        rank: that has reported them.
    """

    group: str
    steps_completed: int
    metrics: Mapping[str, Any]
    rank: int


@dataclass(frozen=True)
class BatchRun:
    """What an output's run has committed.

    Attributes:
        output: the output folder.
        steps: that each rank has taken.
        finished: whether nothing is left to do.
        metrics: that were reported, in the order of their commits.
        uses: checkpoints and versions of models that it was said to use, each once.
    """

    output: str
    steps: tuple[int, ...]
    finished: bool
    metrics: tuple[ReportedMetrics, ...]
    uses: tuple[Mapping[str, Any], ...]


def read_run(output: str) -> BatchRun:
    """Returns what an output's run has committed.

    Raises:
        OutputError: there is no run.
        ResumeError: a record is damaged.
    """
    if read_bytes(folder_of(output, RUN_FILE)) is None:
        raise OutputError(
            f"output {output!r} holds no run of a batch processor; name the output of one"
        )
    commits = [*read_commits(output)]
    metrics = [
        ReportedMetrics(**one, rank=rank.rank)
        for commit in commits
        for rank in commit.ranks
        for one in rank.metrics
    ]
    uses: list[Mapping[str, Any]] = []
    for one in (one for commit in commits for rank in commit.ranks for one in rank.uses):
        if one not in uses:
            uses.append(one)
    steps = commits[-1].steps if commits else ()
    finished = bool(commits) and commits[-1].finished
    return BatchRun(output, steps, finished, tuple(metrics), tuple(uses))


class OutputRun:
    """The run of an output, for the one that holds its lease.

    Args:
        output: the output folder.
        lease: held.

    Attributes:
        id: of the run, once it has begun.
        log: what is committed.
    """

    def __init__(self, output: str, lease: Lease) -> None:
        self.output, self.id = output, ""
        self._insist = Insistence(lease)
        self.log = CommitLog(output, self._insist)

    def earlier(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns what the output's run was begun with, None if there is none.

        Raises:
            OutputError: the output holds something else.
            ResumeError: the run was begun with other settings, or its file is damaged.
        """
        path = folder_of(self.output, RUN_FILE)
        content = read_bytes(path)
        if content is None:
            _refuse_others(self.output)
            return None
        try:
            found = unseal(content)
        except (DamagedError, OtherVersionError) as error:
            raise ResumeError(
                f"{path!r} is damaged ({error}): restore it, or name another output"
            ) from error
        refuse_other(self.output, found["settings"], settings)
        return found

    def begin(
        self, earlier: Mapping[str, Any] | None, settings: Mapping[str, Any], staged: str | None
    ) -> None:
        """Notes what a run is begun with, and finishes what an ended one has committed.

        Args:
            earlier: the run to resume; None: a new one.
            settings: what it has in common with the calls that resume it.
            staged: name of the copy of its rows, None if there is none.
        """
        self.id = earlier["run"] if earlier else uuid.uuid4().hex
        if earlier is None:
            make_folder(folder_of(self.output))
            document = seal({"run": self.id, "settings": settings, "input": staged})
            self._insist(lambda: replace_text(folder_of(self.output, RUN_FILE), document))
        self._clear(INPUT, keep=staged)
        self.log.recover()
        self._clear(LAUNCHES, keep=None)

    def _clear(self, name: str, keep: str | None) -> None:
        """Removes what ended processes have left; those that still live then fail."""
        folder = folder_of(self.output, name)
        for one in names_in(folder):
            if one != keep:
                gone = join(folder, f"gone-{uuid.uuid4().hex}")
                rename_folder(join(folder, one), gone)
                with suppress(OSError):  # a rank that is about to end still writes there
                    remove(gone)

    def process(
        self,
        job: BatchRankJob,
        launcher: Launcher,
        on_commit: Callable[[Commit], None],
        kind: str,
    ) -> None:
        """Has ranks do what is not committed yet.

        Raises:
            PausedError: it was asked to end, and has committed what was done.
            JobError: a rank failed, or ranks died again and again.
        """
        with pause_heard() as pause:
            deaths = 0
            while not self._is_finished():
                before = self.log.rounds
                died = self._launch(job, launcher, on_commit, kind, pause)
                self._refuse_to_go_on_paused(pause, job)
                if died is None:
                    continue
                deaths = 1 if self.log.rounds > before else deaths + 1
                if deaths == DEATHS_IN_A_ROW:
                    raise died
                logger.warning("%s. The ranks start again from the last checkpoint", died)

    def _is_finished(self) -> bool:
        return self.log.last is not None and self.log.last.finished

    def _refuse_to_go_on_paused(self, pause: threading.Event, job: BatchRankJob) -> None:
        if pause.is_set() and not self._is_finished():
            done = self.log.last.steps if self.log.last is not None else (0,)
            raise PausedError(
                f"output {self.output!r}: paused after {min(done)} of {job.plan.steps} steps, as "
                "this process was asked to end; run the same call to resume"
            )

    def _launch(
        self,
        job: BatchRankJob,
        launcher: Launcher,
        on_commit: Callable[[Commit], None],
        kind: str,
        pause: threading.Event,
    ) -> JobError | None:
        """Runs the ranks once; returns the error if one of them died."""
        done = self.log.last.steps if self.log.last is not None else (0,) * job.world_size
        job = replace(job, launch=uuid.uuid4().hex, number=self.log.rounds, steps=done)
        make_folder(job.folder)
        supervisor = Supervisor(
            job.folder, job.world_size, START_TIMEOUT_S, launcher.cancel, _nothing, _nothing
        )
        rounds = DriverRounds(
            job.folder, job.world_size, self.log, pause, on_commit, supervisor.abort
        )
        error: Exception | None = None
        with rounds, supervisor:
            try:
                launcher.launch(job, kind)
            except Exception as raised:  # launchers may raise anything
                error = raised
        if rounds.error is not None:
            raise rounds.error
        try:
            supervisor.conclude(error)
        except JobError as failed:
            if supervisor.has_died:
                return failed
            if isinstance(error, RankDiedError):
                return error
            raise
        finally:
            self._clear(LAUNCHES, keep=None)
        return None


def refuse_other(output: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ResumeError if a call differs from the run that its output holds."""
    for name, value in now.items():
        if earlier.get(name) != value:
            raise ResumeError(
                f"output {output!r} holds a run with {name} {shown(earlier.get(name))}, this call "
                f"has {shown(value)}: committed batches would not be those of this call; call it "
                "as before to resume it, or name another output for a new run"
            )


def _refuse_others(output: str) -> None:
    """Raises OutputError if a folder that holds no run of a processor holds something else."""
    names = [name for name in names_in(output) if name != WORK_FOLDER]
    inner = set(names_in(join(output, WORK_FOLDER))) - {"lease", "processor"}
    if names or inner:
        raise OutputError(
            f"output {output!r} is not empty: it holds {(names or sorted(inner))[0]!r} and no run "
            "of a batch processor; name another folder"
        )


def _nothing(*_: object) -> None:
    """Ignores what is said."""
