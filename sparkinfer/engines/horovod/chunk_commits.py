"""Commits the chunks of a launch while its ranks keep scoring."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

from sparkinfer.engines.horovod.control import RankResult
from sparkinfer.plan.ports import ChunkLedger, ChunkTask, ScoredChunk
from sparkinfer.rows.tally import WrittenFile, read_tally

COMMITS_AT_ONCE = 4
"""On an object store a commit takes a few round trips."""


@dataclass
class SharedChunk:
    """A chunk that ranks score together.

    Attributes:
        task: the chunk.
        ranks: how many ranks have a share of it.
        results: what they have written so far.
    """

    task: ChunkTask
    ranks: int
    results: list[RankResult] = field(default_factory=list)


class ChunkCommits:
    """Commits each chunk once all ranks that share it have written their part.

    Commits run in separate threads: publishing must not hold up watching the ranks. Leaving the
    context waits for them, and raises the first error of a commit.

    Args:
        ledger: commits the chunks.
        abort: ends the launch; called with the reason when a commit has failed.
    """

    def __init__(
        self,
        ledger: ChunkLedger,
        abort: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._chunks: dict[int, SharedChunk] = {}
        self._abort = abort
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(COMMITS_AT_ONCE, thread_name_prefix="sparkinfer-commit")

    def __enter__(self) -> ChunkCommits:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        if self._error is not None and (error is None or isinstance(error, Exception)):
            raise self._error

    def expect(self, shared: SharedChunk) -> None:
        """Takes a chunk, before any rank can have written of it."""
        self._chunks[shared.task.chunk.number] = shared

    def add(self, result: RankResult) -> None:
        """Adds what a rank has written of a chunk; call it from one thread at a time."""
        shared = self._chunks[result.chunk]
        shared.results.append(result)
        if len(shared.results) == shared.ranks:
            self._pool.submit(self._commit, self._chunks.pop(result.chunk))

    def _commit(self, shared: SharedChunk) -> None:
        if self._error is not None:
            return
        results = sorted(shared.results, key=lambda result: result.rank)
        files = tuple(WrittenFile(result.file, read_tally(result.tally)) for result in results)
        seconds = max(result.seconds for result in results)
        task = shared.task
        try:
            self._ledger.commit(ScoredChunk(task.chunk, task.staging, files, seconds))
        except BaseException as error:
            self._error = error
            self._abort(f"committing a chunk failed: {error}")
