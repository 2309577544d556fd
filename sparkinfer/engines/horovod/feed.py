"""Gives the ranks of a launch their shares, wave after wave, for as long as they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from sparkinfer.engines.horovod.prepare_stage import Beside
from sparkinfer.engines.horovod.shares import Shares
from sparkinfer.engines.horovod.waves import Waves
from sparkinfer.spark.job_threads import JobThreads

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class Feed:
    """Prepares and deals further waves in a thread while its context is open.

    Leaving the context ends the wave that is being prepared: another launch begins it again.

    Args:
        spark: the session.
        waves: what is left to prepare.
        shares: of this launch; the first wave is dealt.
        deal: deals the chunks of these numbers.
        abort: ends the launch; called with the reason when a wave could not be prepared.

    Attributes:
        error: why that was, None if it did not fail.
    """

    def __init__(
        self,
        spark: SparkSession,
        waves: Waves,
        shares: Shares,
        deal: Callable[[Iterable[int]], object],
        abort: Callable[[str], None],
    ) -> None:
        self.error: Exception | None = None
        self._threads = JobThreads(spark)
        self._waves = waves
        self._shares = shares
        self._deal = deal
        self._abort = abort
        self._is_closing = False

    def __enter__(self) -> Feed:
        self._threads.submit(self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_closing = True
        self._shares.close()
        self._threads.close()

    def _run(self) -> None:
        try:
            # If executors are gone, the ranks end and what is left is prepared before others start.
            while self._waves.are_left and (slots := self._waves.slots_beside()):
                if not self._shares.wait_until_wanted():
                    return
                self._deal(self._waves.prepare_beside(Beside(slots, self._threads.group)))
            self._shares.end()
        except Exception as error:
            if not self._is_closing:
                self.error = error
                self._abort(f"the next rows could not be prepared: {error}")
