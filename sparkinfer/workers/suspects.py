"""Notes that a worker leaves of what it is about to run, for the one that comes after its death.

Something in a row may end its process in a way that no exception handler sees: a crash in native
code, or the operating system's out-of-memory killer. Before inputs go through the tokenizer or the
model their hashes are written down. What the notes of a dead worker name last are suspects: the
next attempt runs each of them alone. Whatever dies alone is deadly and is not run again.

Where the notes' folder is on a disk they are written from the first attempt on, at the cost of a
small write for each batch; elsewhere, where each costs a request, once a worker has died.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from sparkinfer.exceptions import DeviceError
from sparkinfer.logs import get_logger
from sparkinfer.storage import (
    file_system,
    is_on_disk,
    join,
    make_folder,
    names_in,
    read_bytes,
    remove,
    write_text,
)

logger = get_logger(__name__)

MOST_DEADLY = 16
"""Inputs of a chunk that kill their worker, beyond which it must be something else."""

MOST_UNEXCEPTED = 2
"""The same, if nothing that ran alone has let its worker live: it may be the model that kills."""

_SURVIVED = " survived"
"""Ends the name of the lane in which something ran alone that did not kill."""

DEADLY = "worker: its process died over this text, first in a batch and then alone"
"""The `error` of a row whose input is deadly."""


@dataclass(frozen=True)
class Known:
    """What the notes of dead workers say of a chunk's inputs.

    Attributes:
        suspected: hashes of those that ran when a worker died.
        deadly: hashes of those that ran alone then.
        unexcepted: how many of those ran where nothing has run alone and let its worker live.
    """

    suspected: frozenset[str] = frozenset()
    deadly: frozenset[str] = frozenset()
    unexcepted: int = 0

    def __bool__(self) -> bool:
        return bool(self.suspected or self.deadly)


@dataclass(frozen=True)
class Attempt:
    """One attempt of a worker at rows of a chunk; small and picklable.

    Attributes:
        folder: for the notes of all chunks.
        chunk: name of the chunk.
        launch: names what was started together; the workers of other launches have ended.
        part: of the launch's rows.
        number: of attempts at this part before.
        has_predecessor: whether a worker may have died over the chunk before.
    """

    folder: str
    chunk: str
    launch: str
    part: int = 0
    number: int = 0
    has_predecessor: bool = False

    @property
    def name(self) -> str:
        """Of the file for its notes."""
        return f"{self.chunk}-{self.launch}-{self.part}-{self.number}"

    def of_task(self, part: int, number: int) -> Attempt:
        """Returns the attempt of one Spark task.

        Args:
            part: number of the task, or of what it does.
            number: how often it was attempted before.
        """
        has_predecessor = self.has_predecessor or number > 0
        return replace(self, part=part, number=number, has_predecessor=has_predecessor)

    def follows(self, name: str) -> bool:
        """Returns whether notes are of this chunk and by a worker that has ended."""
        chunk, launch, part, number = name.rsplit("-", 3)
        if chunk != self.chunk or launch != self.launch:
            return chunk == self.chunk
        return int(part) == self.part and int(number) < self.number


_at_work: set[Suspects] = set()
"""Those of this process whose context is open."""


class Suspects:
    """What one attempt knows of its inputs, and its own notes, while its context is open.

    Args:
        attempt: what is attempted; None: no notes are read or left.

    Attributes:
        known: what the notes of dead workers say.
        follows_death: whether a worker may have died over the same rows before.
    """

    def __init__(self, attempt: Attempt | None = None) -> None:
        self.known = Known()
        self.follows_death = attempt is not None and attempt.has_predecessor
        self._notes: _AppendedNotes | _ReplacedNotes | None = None
        self._lock = threading.Lock()
        self._alone_in: str | None = None
        if attempt is None:
            return
        if attempt.has_predecessor:
            self.known = read_known(attempt)
        self._path = join(attempt.folder, attempt.name)
        try:
            if is_on_disk(attempt.folder):
                self._notes = _AppendedNotes(self._path)
            elif attempt.has_predecessor:
                self._notes = _ReplacedNotes(self._path)
        except OSError as error:  # notes are worth less than rows
            logger.warning("%s: no notes are kept: %s", self._path, error)

    @property
    def is_noting(self) -> bool:
        """Whether it is worth hashing what runs."""
        return self._notes is not None

    def __enter__(self) -> Suspects:
        _at_work.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the notes: this worker has not died over what they name.

        It is about to die if its accelerator is broken.
        """
        _at_work.discard(self)
        if not isinstance(error, DeviceError):
            self.withdraw()

    def withdraw(self) -> None:
        """Removes the notes."""
        if self._notes is not None:
            with contextlib.suppress(Exception):
                remove(self._path)
                self._notes.close()

    def running(self, lane: str, hashes: Sequence[str], *, alone: bool = False) -> None:
        """Notes what is about to run; nothing if none.

        Args:
            lane: `tokenizer` or `model`, which work at the same time unless there are suspects.
            hashes: of the inputs.
            alone: whether it is a suspect that runs by itself.
        """
        with self._lock:
            if self._notes is None:
                return
            try:
                if self._alone_in is not None:
                    self._notes.put(self._alone_in + _SURVIVED, (), False)
                self._notes.put(lane, hashes, alone)
                self._alone_in = lane if alone else None
            except Exception as error:  # notes are worth less than rows
                logger.warning("%s: no notes are kept: %s", self._path, error)
                self._notes = None


def withdraw_all() -> None:
    """Removes the notes of this process, which is asked to end: not by what they name."""
    for suspects in list(_at_work):
        suspects.withdraw()


def read_known(attempt: Attempt) -> Known:
    """Returns what the notes of workers that have ended say."""
    suspected: set[str] = set()
    deadly: dict[str, str] = {}
    survived: set[str] = set()
    for name in names_in(attempt.folder):
        if not attempt.follows(name):
            continue
        last = _last_in_each_lane(read_bytes(join(attempt.folder, name)) or b"")
        for lane, (hashes, alone) in last.items():
            if lane.endswith(_SURVIVED):
                survived.add(lane.removesuffix(_SURVIVED))
            elif alone:
                deadly.update(dict.fromkeys(hashes, lane))
            else:
                suspected.update(hashes)
    unexcepted = sum(lane not in survived for lane in deadly.values())
    return Known(frozenset(suspected - deadly.keys()), frozenset(deadly), unexcepted)


class _AppendedNotes:
    """Notes in a local file, one line each; what has been written survives the process."""

    def __init__(self, path: str) -> None:
        make_folder(path.rpartition("/")[0])
        name = file_system(path)[1]
        self._file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def put(self, lane: str, hashes: Sequence[str], alone: bool) -> None:
        os.write(self._file, f"{json.dumps([lane, alone, list(hashes)])}\n".encode())

    def close(self) -> None:
        os.close(self._file)


class _ReplacedNotes:
    """Notes in an object that is replaced each time."""

    def __init__(self, path: str) -> None:
        make_folder(path.rpartition("/")[0])
        self._path = path
        self._lanes: dict[str, str] = {}

    def put(self, lane: str, hashes: Sequence[str], alone: bool) -> None:
        self._lanes[lane] = json.dumps([lane, alone, list(hashes)])
        write_text(self._path, "".join(f"{line}\n" for line in self._lanes.values()))

    def close(self) -> None:
        pass


def _last_in_each_lane(content: bytes) -> dict[str, tuple[list[str], bool]]:
    """Returns what ran last in each lane, and whether alone; passes over a half-written line."""
    last: dict[str, tuple[list[str], bool]] = {}
    for line in content.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, TypeError):
            lane, alone, hashes = json.loads(line)
            last[lane] = hashes, alone
    return last
