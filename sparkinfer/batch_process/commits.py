"""What all ranks have committed together: one record for each round, created before files move.

A record is never changed. It names the files of its round and where they go; whoever comes later
finishes what its writer began. What no record names has not happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from sparkinfer.exceptions import JobError, ResumeError
from sparkinfer.exclusive import create_exclusively
from sparkinfer.jobs.clock import utc_now
from sparkinfer.jobs.lease import LeaseLostError
from sparkinfer.jobs.sealed import DamagedError, OtherVersionError, seal, unseal
from sparkinfer.storage import (
    WORK_FOLDER,
    exists,
    file_size,
    is_file,
    join,
    make_folder,
    move,
    names_in,
    read_bytes,
    read_text,
    remove,
    replace_text,
)

T = TypeVar("T")

PROCESSOR_FOLDER = "processor"
"""Folder in the work folder for all that is a batch-processing run's."""

COMMITS, STATES = "commits", "states"

PUBLISHED = "published"
"""File with the number of the last round whose files are where they stay: they are the user's."""


@dataclass(frozen=True)
class Move:
    """A file that goes where it stays once its round is committed.

    Attributes:
        source: where it was staged, in the output.
        target: where it goes, in the output.
        size: in bytes.
    """

    source: str
    target: str
    size: int


@dataclass(frozen=True)
class Proposal:
    """What a rank has ready to be committed.

    Attributes:
        rank: the rank.
        steps: that it has taken in all.
        paused: whether it ends then, as the run was asked to pause.
        finished: whether its `on_finish` has returned.
        moves: its files.
        metrics: that it has reported: group, steps_completed, metrics.
        uses: what it has said that it uses.
    """

    rank: int
    steps: int
    paused: bool = False
    finished: bool = False
    moves: Sequence[Move] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    uses: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Proposal:
        """Returns it as it was before `asdict`."""
        return cls(**{**values, "moves": [Move(**one) for one in values["moves"]]})


@dataclass(frozen=True)
class Commit:
    """A round that is committed.

    Attributes:
        number: of the round, from 1.
        ranks: what each rank has committed.
        at: when, ISO 8601 in UTC.
    """

    number: int
    ranks: Sequence[Proposal]
    at: str = field(default_factory=utc_now)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that each rank has taken in all."""
        return tuple(rank.steps for rank in self.ranks)

    @property
    def paused(self) -> bool:
        """Whether all ranks end here."""
        return any(rank.paused for rank in self.ranks)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return all(rank.finished for rank in self.ranks)


class Insists(Protocol):
    """Does what may be repeated; see `sparkinfer.jobs.insistence`."""

    def __call__(self, act: Callable[[], T]) -> T:
        """Returns what an act returns."""


def folder_of(output: str, *names: str) -> str:
    """Returns a run's folder in the work folder of its output, or something in it."""
    return join(output, WORK_FOLDER, PROCESSOR_FOLDER, *names)


def state_name(number: int, rank: int) -> str:
    """Returns where the reducers of a rank are kept that a round has committed, in the output."""
    return f"{WORK_FOLDER}/{PROCESSOR_FOLDER}/{STATES}/{number:08d}-{rank:05d}.pickle"


def read_commits(output: str) -> Iterator[Commit]:
    """Yields the rounds of an output's run, the first one first.

    Raises:
        ResumeError: a record is damaged.
    """
    folder = folder_of(output, COMMITS)
    for name in names_in(folder):
        if name.endswith(".json"):
            yield _read(join(folder, name))


class CommitLog:
    """The records of a run, for the one that holds its output.

    Args:
        output: the output folder.
        insist: does each step, unless this writer must not go on.

    Attributes:
        last: the latest round, None before the first.
    """

    def __init__(self, output: str, insist: Insists) -> None:
        self._output = output
        self._insist = insist
        self.last: Commit | None = None

    @property
    def rounds(self) -> int:
        """How many rounds are committed."""
        return 0 if self.last is None else self.last.number

    def recover(self) -> None:
        """Reads the latest record and finishes what it says.

        Raises:
            ResumeError: it is damaged.
            JobError: a file that it names is gone.
        """
        folder = folder_of(self._output, COMMITS)
        make_folder(folder)
        names = [name for name in names_in(folder) if name.endswith(".json")]
        if names:
            self.last = _read(join(folder, names[-1]))
            if read_text(folder_of(self._output, PUBLISHED)) != str(self.last.number):
                self._publish(self.last)

    def commit(self, commit: Commit) -> None:
        """Records a round and moves its files.

        Raises:
            LeaseLostError: another run writes here now.
        """
        path = join(folder_of(self._output, COMMITS), f"{commit.number:08d}.json")
        text = seal(asdict(commit))
        self._insist(lambda: create_exclusively(path, text, durable=True))
        if self._insist(lambda: read_bytes(path)) != text.encode("utf-8"):
            raise LeaseLostError(
                f"output {self._output!r}: another run has committed round {commit.number}; this "
                "one writes nothing more there. Run again once no other run writes there"
            )
        self.last = commit
        self._publish(commit)

    def _publish(self, commit: Commit) -> None:
        for one in (one for rank in commit.ranks for one in rank.moves):
            self._insist(lambda one=one: self._move(one))  # type: ignore[misc]
        folder = folder_of(self._output, STATES)
        for name in names_in(folder):
            if name < f"{commit.number:08d}":
                self._insist(lambda name=name: remove(join(folder, name)))  # type: ignore[misc]
        published = folder_of(self._output, PUBLISHED)
        self._insist(lambda: replace_text(published, str(commit.number)))

    def _move(self, one: Move) -> None:
        source, target = join(self._output, one.source), join(self._output, one.target)
        if exists(source):
            make_folder(target.rpartition("/")[0])
            move(source, target)
        elif not is_file(target) or file_size(target) != one.size:
            raise JobError(
                f"{target!r} of {one.size:,} bytes is committed and gone: restore it, or name "
                "another output for a new run"
            )


def _read(path: str) -> Commit:
    try:
        values = unseal(read_bytes(path) or b"")
        ranks = [Proposal.read(rank) for rank in values["ranks"]]
        return Commit(**{**values, "ranks": ranks})
    except (DamagedError, OtherVersionError, TypeError, KeyError) as error:
        raise ResumeError(
            f"{path!r} is damaged ({error}): restore it, or name another output for a new run"
        ) from error
