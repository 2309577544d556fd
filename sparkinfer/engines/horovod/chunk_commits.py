"""Commits the chunks of a launch while its ranks go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from sparkinfer.engines.horovod.rank import PreparedChunk
from sparkinfer.engines.horovod.supervision import RankResult
from sparkinfer.plan.ports import ScoredChunk, ScoringRun


class ChunkCommits:
    """Commits each chunk once all ranks that share it have written their part.

    That happens in a thread of its own: publishing must not keep anyone from watching the ranks.
    Leaving the context waits for it, and raises what a commit raised.

    Args:
        run: what is scored.
        chunks: with the share of each rank.
        abort: ends the launch, called with the reason when a commit has failed.
    """

    def __init__(
        self, run: ScoringRun, chunks: Sequence[PreparedChunk], abort: Callable[[str], None]
    ) -> None:
        self._run = run
        self._abort = abort
        self._tasks = {task.chunk.number: task for task in run.tasks}
        self._awaited = {
            chunk.number: {rank for rank, share in enumerate(chunk.row_groups) if share}
            for chunk in chunks
        }
        self._written: dict[int, list[RankResult]] = {chunk.number: [] for chunk in chunks}
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sparkinfer-commit")

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

    def add(self, result: RankResult) -> None:
        """Takes what a rank has written of a chunk."""
        self._written[result.chunk].append(result)
        self._awaited[result.chunk].discard(result.rank)
        if not self._awaited[result.chunk]:
            self._pool.submit(self._commit, self._written.pop(result.chunk))

    def _commit(self, results: list[RankResult]) -> None:
        if self._error is not None:
            return
        task = self._tasks[results[0].chunk]
        files = tuple(result.file for result in sorted(results, key=lambda result: result.rank))
        seconds = max(result.seconds for result in results)
        try:
            self._run.commit(ScoredChunk(task.chunk, task.staging, files, seconds))
        except BaseException as error:
            self._error = error
            self._abort(f"a chunk was not committed: {error}")
