"""Which rank scores which row groups of which chunk, passed on in files that the ranks wait for.

A table may have thousands of chunks of many row groups: lists of them are neither held by the
driver nor sent with every rank's job. Each rank finds one file after the other, while it scores
what was in those before. A last file says that no more come.

Chunks are dealt by what each rank has left of those before, so a rank that is slower gets less.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from sparkinfer.batching.row_groups import deal_out, weight
from sparkinfer.engines.horovod.control import insist
from sparkinfer.engines.horovod.prepare import PreparedFile
from sparkinfer.storage import join, make_folder, read_text, replace_text

END_FILE = "end.json"


@dataclass(frozen=True)
class RankShare:
    """What one rank scores of one chunk.

    Attributes:
        chunk: number of the chunk.
        staging: folder for the scored file.
        files: the row groups.
    """

    chunk: int
    staging: str
    files: tuple[PreparedFile, ...]


class Shares:
    """Deals chunks out to the ranks of a launch; thread-safe, but for one thread that deals.

    Args:
        folder: where to write the files.
        world_size: number of ranks.
    """

    def __init__(self, folder: str, world_size: int) -> None:
        self._folder = folder
        self._loads = [0] * world_size
        self._undone: dict[tuple[int, int], int] = {}
        self._next: list[list[Any]] = [[] for _ in range(world_size)]
        self._published = 0
        self._dealt = 0
        self._is_closed = False
        self._changed = threading.Condition()
        make_folder(folder)

    def add(
        self, chunk: int, staging: str, files: Sequence[PreparedFile], *, whole: bool = False
    ) -> int:
        """Deals a chunk, to be published; returns how many ranks have a share of it.

        Args:
            chunk: number of the chunk.
            staging: folder for the scored files.
            files: its row groups.
            whole: whether one rank gets all of it.
        """
        with self._changed:
            shares = deal_chunk(files, self._loads, whole=whole)
            for rank, share in enumerate(shares):
                if share:
                    tokens = sum(weight(file.tokens) for file in share)
                    self._undone[chunk, rank] = tokens
                    self._loads[rank] += tokens
                    self._dealt += tokens
                    self._next[rank].append([chunk, staging, [astuple(one) for one in share]])
        return sum(bool(share) for share in shares)

    def publish(self) -> None:
        """Has the ranks see what was dealt since the last call."""
        for rank, shares in enumerate(self._next):
            _write(join(self._folder, _file_name(self._published, rank)), shares)
            shares.clear()
        self._published += 1

    def end(self) -> None:
        """Tells the ranks that no more comes."""
        _write(join(self._folder, END_FILE), {"files": self._published})

    def done(self, chunk: int, rank: int) -> None:
        """Notes that a rank has scored its share of a chunk."""
        with self._changed:
            self._loads[rank] -= self._undone.pop((chunk, rank), 0)
            self._changed.notify_all()

    def wait_until_wanted(self) -> bool:
        """Waits until a rank has no more left than its share of what was dealt since the last call.

        So what is scored lasts for as long as that, and what is prepared beside it is bounded.

        Returns:
            Whether more is wanted: not if the launch has ended.
        """
        with self._changed:
            enough, self._dealt = self._dealt / len(self._loads), 0
            self._changed.wait_for(lambda: self._is_closed or min(self._loads) <= enough)
            return not self._is_closed

    def close(self) -> None:
        """Ends the wait: the launch has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def read_shares(folder: str, rank: int, pause: Callable[[], None]) -> Iterator[RankShare]:
    """Yields a rank's shares, in the order in which to score them, as they come.

    Args:
        folder: of the files.
        rank: whose.
        pause: called between two looks at the folder; what it raises ends the wait.

    Raises:
        ControlFolderError: the folder cannot be read.
    """
    number = 0
    while True:
        shares = _read(join(folder, _file_name(number, rank)))
        if shares is not None:
            for chunk, staging, files in shares:
                yield RankShare(chunk, staging, tuple(PreparedFile(*one) for one in files))
            number += 1
            continue
        end = _read(join(folder, END_FILE))
        if end is not None and number >= end["files"]:
            return
        pause()


def deal_chunk(
    files: Sequence[PreparedFile], loads: Sequence[int], *, whole: bool = False
) -> list[list[PreparedFile]]:
    """Returns for each rank its row groups of a chunk.

    Args:
        files: the chunk's row groups.
        loads: tokens that each rank has before it already.
        whole: whether one rank gets all of it.
    """
    if whole:
        first = loads.index(min(loads))
        return [list(files) if rank == first else [] for rank in range(len(loads))]
    shares = deal_out([file.tokens for file in files], loads)
    return [[files[index] for index in share] for share in shares]


def _file_name(number: int, rank: int) -> str:
    return f"{number:06d}-rank-{rank:05d}.json"


def _write(path: str, values: Any) -> None:
    text = json.dumps(values)
    insist(lambda: replace_text(path, text))


def _read(path: str) -> Any:
    """Returns what a file holds, None if it is missing or still being written."""
    text = insist(lambda: read_text(path))
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None
