"""How ranks and the driver agree on what is committed: small files of a launch's folder.

In each round every rank proposes once, whatever it has; once all have, the driver commits the round
and says so. Nobody waits for another in between, and a rank that dies has proposed or has not.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from sparkinfer.batch_process.commits import Commit, CommitLog, Proposal
from sparkinfer.engines.horovod.control import insist, read_state
from sparkinfer.logs import get_logger
from sparkinfer.storage import exists, is_on_disk, join, make_folder, names_in, replace_text

logger = get_logger(__name__)

T = TypeVar("T")

LOOK_EVERY_S, LOOK_ELSEWHERE_EVERY_S = 0.02, 1.0
"""Time between two looks, on a disk of this machine and elsewhere."""

PAUSE_LOOK_ELSEWHERE_EVERY_S = 5.0
"""Between steps, which may be many a second; on a disk a look costs microseconds."""

PROPOSED, PAUSE_FILE = "proposed", "pause"


@dataclass(frozen=True)
class Decision:
    """What the driver says of a round that is committed.

    Attributes:
        steps: that each rank has taken in all.
        paused: whether the ranks end.
    """

    steps: Sequence[int]
    paused: bool


class RankRounds:
    """A rank's side.

    Args:
        folder: of the launch.
        rank: this rank.
        number: of the last round that is committed.
        check: raises if this rank is to end.

    Attributes:
        number: of the last round that is committed.
    """

    def __init__(self, folder: str, rank: int, number: int, check: Callable[[], None]) -> None:
        self._folder = folder
        self._rank = rank
        self.number = number
        self._check = check
        on_disk = is_on_disk(folder)
        self._look_every_s = LOOK_EVERY_S if on_disk else LOOK_ELSEWHERE_EVERY_S
        self._pause_look_every_s = 0.0 if on_disk else PAUSE_LOOK_ELSEWHERE_EVERY_S
        self._pause_looked = 0.0
        self._pause_asked = False

    def pause_asked(self) -> bool:
        """Returns whether the run was asked to pause; cheap, to be called after each step."""
        now = time.monotonic()
        if not self._pause_asked and now - self._pause_looked >= self._pause_look_every_s:
            self._pause_looked = now
            self._pause_asked = _insisted(lambda: exists(join(self._folder, PAUSE_FILE)))
        return self._pause_asked

    def commit(self, proposal: Proposal) -> Decision:
        """Returns what the driver says once all ranks have proposed for the next round.

        Raises:
            RunAbortedError: the run ends without it.
        """
        number = self.number + 1
        path = join(self._folder, PROPOSED, f"{number:08d}-{self._rank:05d}.json")
        insist(lambda: replace_text(path, json.dumps(asdict(proposal))))
        decision = _decision_file(self._folder, number)
        while (said := _read(decision)) is None:
            self._check()
            time.sleep(self._look_every_s)
        self.number = number
        return Decision(**said)


class DriverRounds:
    """The driver's side; commits while its context is open.

    Args:
        folder: of the launch.
        ranks: how many there are.
        log: records the rounds.
        pause: set when the run is asked to pause.
        on_commit: called after each round.
        abort: ends the ranks, for a reason.

    Attributes:
        error: what ended it early.
    """

    def __init__(
        self,
        folder: str,
        ranks: int,
        log: CommitLog,
        pause: threading.Event,
        on_commit: Callable[[Commit], None],
        abort: Callable[[str], None],
    ) -> None:
        self._folder, self._ranks, self._log = folder, ranks, log
        self._pause, self._on_commit, self._abort = pause, on_commit, abort
        self.error: Exception | None = None
        self._told_to_pause = False
        self._look_every_s = LOOK_EVERY_S if is_on_disk(folder) else LOOK_ELSEWHERE_EVERY_S
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparkinfer-rounds", daemon=True)

    def __enter__(self) -> DriverRounds:
        make_folder(join(self._folder, PROPOSED))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Commits what all ranks had proposed by the end."""
        self._closed.set()
        self._thread.join()
        if self.error is None:
            self._try_look()

    def _run(self) -> None:
        while self.error is None and not self._closed.wait(self._look_every_s):
            self._try_look()

    def _try_look(self) -> None:
        try:
            self._look()
        except Exception as error:  # raised again by who opened the context
            self.error = error
            self._abort(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        if self._pause.is_set() and not self._told_to_pause:
            insist(lambda: replace_text(join(self._folder, PAUSE_FILE), ""))
            self._told_to_pause = True
            logger.warning("asked to end: the ranks finish the step at hand and commit it")
        number = self._log.rounds + 1
        names = [f"{number:08d}-{rank:05d}.json" for rank in range(self._ranks)]
        folder = join(self._folder, PROPOSED)
        if not set(names) <= set(_insisted(lambda: names_in(folder))):
            return
        proposals = [_read(join(folder, name)) for name in names]
        commit = Commit(number, [Proposal.read(one) for one in proposals if one is not None])
        if len(commit.ranks) < self._ranks:
            return  # one is still being written
        self._log.commit(commit)
        decision = Decision(commit.steps, commit.paused)
        text = json.dumps(asdict(decision))
        insist(lambda: replace_text(_decision_file(self._folder, number), text))
        logger.info("%d steps of each rank are committed", min(commit.steps))
        self._on_commit(commit)


def _read(path: str) -> dict[str, Any] | None:
    return _insisted(lambda: read_state(path))


def _insisted(read: Callable[[], T]) -> T:
    """Returns what is read; a store that hesitates is asked again."""
    found: list[T] = []
    insist(lambda: found.append(read()))
    return found[0]


def _decision_file(folder: str, number: int) -> str:
    return join(folder, f"committed-{number:08d}.json")
