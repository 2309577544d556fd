"""Which rank scores which row groups of which chunk, passed on in one file per rank.

A table may have thousands of chunks of many row groups: lists of them are neither held by the
driver nor sent with every rank's job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import Any, TextIO

from sparkinfer.batching.row_groups import deal_out
from sparkinfer.engines.horovod.prepare import PreparedFile
from sparkinfer.storage import file_system, join, make_folder


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


class ShareWriter:
    """Distributes chunks over ranks and writes each rank's shares, while its context is open.

    Args:
        folder: where to write the files.
        world_size: number of ranks.
    """

    def __init__(self, folder: str, world_size: int) -> None:
        self._folder = folder
        self._world_size = world_size
        self._turn = 0
        self._open = ExitStack()
        self._files: list[TextIO] = []

    def __enter__(self) -> ShareWriter:
        make_folder(self._folder)
        for rank in range(self._world_size):
            fs, name = file_system(join(self._folder, _file_name(rank)))
            self._files.append(self._open.enter_context(fs.open(name, "w", encoding="utf-8")))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def add(
        self, chunk: int, staging: str, files: Sequence[PreparedFile], *, whole: bool = False
    ) -> int:
        """Distributes a chunk; returns how many ranks have a share of it.

        Args:
            chunk: number of the chunk.
            staging: folder for the scored files.
            files: its row groups.
            whole: whether one rank gets all of it.
        """
        if whole:
            shares = [
                list(files) if rank == self._turn % self._world_size else []
                for rank in range(self._world_size)
            ]
        else:
            shares = deal_chunk(files, self._world_size, self._turn)
        self._turn += 1
        for file, share in zip(self._files, shares, strict=True):
            if share:
                values = [chunk, staging, [astuple(one) for one in share]]
                file.write(json.dumps(values) + "\n")
        return sum(bool(share) for share in shares)


def read_shares(folder: str, rank: int) -> Iterator[RankShare]:
    """Yields a rank's shares, in the order in which to score them."""
    fs, name = file_system(join(folder, _file_name(rank)))
    with fs.open(name, "r", encoding="utf-8") as file:
        for line in file:
            chunk, staging, files = json.loads(line)
            yield RankShare(chunk, staging, tuple(PreparedFile(*one) for one in files))


def deal_chunk(
    files: Sequence[PreparedFile], world_size: int, turn: int
) -> list[list[PreparedFile]]:
    """Returns for each rank its row groups of a chunk.

    Args:
        files: the chunk's row groups.
        world_size: number of ranks.
        turn: number of chunks dealt before, so that it is not always the same rank that gets more.
    """
    shares = deal_out([file.tokens for file in files], world_size)
    turned = [shares[(rank + turn) % world_size] for rank in range(world_size)]
    return [[files[index] for index in share] for share in turned]


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.jsonl"
