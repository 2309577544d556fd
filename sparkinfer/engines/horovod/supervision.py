"""The driver's side of the control folder; see `sparkinfer.engines.horovod.control`."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sparkinfer.engines.horovod.control import (
    DONE,
    DRIVER_FILE,
    FAILED,
    RESTARTED_FILE,
    RESULTS,
    SCORING,
    RankResult,
    RankState,
    RankTracebackError,
    beat_interval_s,
    insist,
    rank_file,
    read_state,
)
from sparkinfer.exceptions import JobError
from sparkinfer.logs import get_logger
from sparkinfer.storage import join, make_folder, names_in, read_text, remove, replace_text
from sparkinfer.workers.steps import Step, Telling

logger = get_logger(__name__)

RANK_LOST_AFTER_S = 20.0
"""A rank whose count does not change for this long is taken for dead ..."""

RANK_LOST_AFTER_LOOKS = 4
"""... if the driver has looked this often meanwhile."""

ABORT_GRACE_S = 10.0
"""Time the ranks get to end on their own before the launcher is asked to end them."""

READERS = 32
"""States of ranks that the driver reads concurrently."""


class Supervisor:
    """Watches the ranks while its context is open, and aborts the run.

    Attributes:
        has_died: whether the run failed because a rank died or hung.
        deadly_chunks: number of the chunk over which it did, if it had reported that.

    Args:
        folder: the control folder.
        world_size: number of ranks.
        start_timeout_s: seconds within which all ranks must beat.
        cancel: ends the launch; called when the ranks do not end on their own.
        on_scoring: called once, when the first rank starts to score.
        on_result: called once for each result of a rank.
    """

    def __init__(
        self,
        folder: str,
        world_size: int,
        start_timeout_s: float,
        cancel: Callable[[], None],
        on_scoring: Callable[[], None],
        on_result: Callable[[RankResult], None],
    ) -> None:
        self._folder = folder
        self.has_died = False
        self.deadly_chunks: tuple[int, ...] = ()
        self._results = join(folder, RESULTS)
        self._known_results: set[str] = set()
        self._on_result = on_result
        self._ranks: list[RankState | None] = [None] * world_size
        self._seen = [time.monotonic()] * world_size
        self._looks = [0] * world_size
        self._pause_s = beat_interval_s(folder)
        self._start_timeout_s = start_timeout_s
        self._cancel = cancel
        self._on_scoring = on_scoring
        self._scoring = False
        self._beat = 0
        self._failure: str | None = None
        self._trace = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparkinfer-ranks", daemon=True)

    def __enter__(self) -> Supervisor:
        self._started = time.monotonic()
        self._telling = Telling("the ranks")
        make_folder(self._results)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def abort(self, reason: str) -> None:
        """Makes the ranks end."""
        self._failure = self._failure or reason

    def conclude(self, launch_error: Exception | None) -> None:
        """Passes on the last results; call it once the launch is over and the context closed.

        Args:
            launch_error: what the launcher raised.

        Raises:
            JobError: a rank failed, was lost or did not start; the cause is a failed rank's
                traceback.
        """
        insist(self._look)
        insist(self._collect)
        insist(self._judge)
        if self._failure is None and not self._all_done():
            self._failure = self._unfinished(launch_error)
        if self._failure is not None:
            cause = launch_error
            if self._trace:
                cause = RankTracebackError(f"in the rank:\n{self._trace}")
            raise JobError(self._failure) from cause

    def _run(self) -> None:
        aborted_at = None
        while not self._closed.wait(self._pause_s):
            for act in (self._look, self._tell, self._judge, self._write, self._collect):
                try:
                    act()
                except Exception as error:  # a flaky store
                    logger.warning("the ranks' folder could not be read or written: %s", error)
            if self._failure is not None and aborted_at is None:
                aborted_at = time.monotonic()
            if aborted_at is not None and time.monotonic() - aborted_at > ABORT_GRACE_S:
                try:
                    self._cancel()
                except Exception as error:  # retried after another grace period
                    logger.warning("cancelling the ranks' launch failed: %s", error)
                aborted_at = time.monotonic()

    def _look(self) -> None:
        """Reads every rank's state once; raises at the end if one could not be read."""
        errors: list[Exception] = []

        def read(file: str) -> dict[str, Any] | None:
            try:
                return read_state(file)
            except Exception as error:
                errors.append(error)
                return None

        files = [join(self._folder, rank_file(rank)) for rank in range(len(self._ranks))]
        with ThreadPoolExecutor(min(READERS, len(files))) as pool:
            states = list(pool.map(read, files))
        for rank, (values, known) in enumerate(zip(states, self._ranks, strict=True)):
            self._looks[rank] += 1
            if values is None:
                continue
            found = RankState(**values)
            if found != known:
                self._ranks[rank], self._seen[rank] = found, time.monotonic()
                self._looks[rank] = 0
            if found.state in (SCORING, DONE) and not self._scoring:
                self._scoring = True
                self._on_scoring()
        if errors:
            raise errors[0]

    def _tell(self) -> None:
        """Tells every minute how far the start is."""
        if None in self._ranks or not self._scoring:
            self._telling.at(Step(f"{self._running()} of {len(self._ranks)} have started"))

    def _running(self) -> int:
        return sum(state is not None for state in self._ranks)

    def _collect(self) -> None:
        """Reads the results that have arrived since the last call."""
        new = [name for name in names_in(self._results) if name.endswith(".json")]
        for name in new:
            if name not in self._known_results:
                values = read_state(join(self._results, name))
                if values is None:
                    continue
                self._on_result(RankResult(**values))
                self._known_results.add(name)
            with contextlib.suppress(OSError):  # a long run has many, and each look lists them
                remove(join(self._results, name))

    def _judge(self) -> None:
        # Only what is found is written down: the driver may abort while this looks.
        if (found := self._find_failure()) is not None:
            self.abort(found)

    def _find_failure(self) -> str | None:
        """Returns why the run can no longer succeed, None if it still can."""
        now = time.monotonic()
        for rank, state in enumerate(self._ranks):
            if state is None:
                if now - self._started > self._start_timeout_s:
                    return self._did_not_start(rank)
            elif state.state == FAILED:
                self._trace = state.trace
                if state.deadly:
                    self._note_death(state)
                return f"{_name(rank, state)} failed: {state.error}"
            elif state.state != DONE and self._is_silent(rank, now):
                return self._lost(rank, state)
        if read_text(join(self._folder, RESTARTED_FILE)) is not None:
            return self._silent_longest("died and was restarted by Spark")
        return None

    def _is_silent(self, rank: int, now: float) -> bool:
        still_s = now - self._seen[rank]
        return still_s > RANK_LOST_AFTER_S and self._looks[rank] >= RANK_LOST_AFTER_LOOKS

    def _unfinished(self, launch_error: Exception | None) -> str:
        """Returns the failure of a launch that ended while ranks were not done."""
        if all(state is None for state in self._ranks):
            reason = f": {launch_error}" if launch_error else ""
            return f"no rank started{reason}"
        return self._silent_longest("ended without a report")

    def _silent_longest(self, what: str) -> str:
        """Names the unfinished rank that has been silent longest: it ended first."""
        waiting = [
            (self._seen[rank] if state else self._started, rank)
            for rank, state in enumerate(self._ranks)
            if state is None or state.state != DONE
        ]
        _, rank = min(waiting, default=(0.0, 0))
        state = self._ranks[rank]
        if state is None:
            return self._did_not_start(rank)
        self._note_death(state)
        return f"{_name(rank, state)} {what}: {_ADVICE}"

    def _lost(self, rank: int, state: RankState) -> str:
        self._note_death(state)
        return f"{_name(rank, state)} has been silent for {RANK_LOST_AFTER_S:.0f} s: {_ADVICE}"

    def _note_death(self, state: RankState) -> None:
        self.has_died = True
        self.deadly_chunks = () if state.chunk is None else (state.chunk,)

    def _did_not_start(self, rank: int) -> str:
        return (
            f"rank {rank} did not start within {self._start_timeout_s:.0f} s ({self._running()} of "
            f"{len(self._ranks)} run): all ranks must run together, and something else may hold "
            "the slots; free them, lower num_workers or raise horovod.start_timeout_s"
        )

    def _all_done(self) -> bool:
        return all(state is not None and state.state == DONE for state in self._ranks)

    def _write(self) -> None:
        self._beat += 1
        driver = {"beat": self._beat, "abort": self._failure}
        replace_text(join(self._folder, DRIVER_FILE), json.dumps(driver))


_ADVICE = (
    "it was killed or its host is gone; look for out-of-memory in the host's log, and run the "
    "same command again"
)


def _name(rank: int, state: RankState) -> str:
    return f"rank {rank} (process {state.pid} on {state.host})"
