"""How the driver and the ranks communicate: small files in a folder that all can reach.

A rank writes its state and a count that grows every second; the driver reads them. The driver
writes its own count and, when a rank has failed or fallen silent, that the run is aborted; the
ranks check for that between batches. Nothing waits for anything else: there are no collectives.
The count is written by a separate thread, so that a rank with a slow batch is not taken for dead.
Counts are compared with earlier ones, never with another machine's clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from sparkinfer.exceptions import DeviceError, JobError, SparkInferError
from sparkinfer.logs import get_logger
from sparkinfer.storage import (
    join,
    make_folder,
    names_in,
    read_text,
    remove,
    renames_atomically,
    replace_text,
)

logger = get_logger(__name__)

BEAT_S = 1.0
"""Time between two beats, and between two looks at the beats of others."""

BEAT_ON_OBJECT_STORE_S = 5.0
"""Longer: there, each beat is a billed request, and an object allows few writes per second."""

RANK_LOST_AFTER_S = 20.0
"""A rank whose count does not change for this long is taken for dead ..."""

RANK_LOST_AFTER_LOOKS = 4
"""... if the driver has looked this often meanwhile."""

DRIVER_LOST_AFTER_S = 60.0
"""A rank ends itself if the driver's count does not change for this long."""

ABORT_GRACE_S = 10.0
"""Time the ranks get to end on their own before the launcher is told to end them."""

ATTEMPTS, ATTEMPT_PAUSE_S = 10, 1.0
"""For reads and writes that must succeed, on a store with occasional failures."""

READERS = 32
"""States of ranks that the driver reads concurrently."""

RESULTS = "results"
"""Folder with one file per `RankResult`."""

DRIVER_FILE = "driver.json"
RESTARTED_FILE = "restarted"

STARTING, SCORING, DONE, FAILED = "starting", "scoring", "done", "failed"


class RunAbortedError(JobError):
    """Ends a rank of an aborted run; the side that aborted it reports the reason."""


class ControlFolderError(JobError):
    """The folder through which driver and ranks communicate is permanently unusable."""


class RankTracebackError(SparkInferError):
    """The traceback of a rank, as the cause of the error raised on the driver."""

    most_characters = 20_000


@dataclass(frozen=True)
class RankResult:
    """What a rank wrote of one chunk.

    Attributes:
        chunk: number of the chunk.
        rank: the rank.
        file: name of the Parquet file in the chunk's staging folder.
        tally: what it holds, a `Tally` as a dict.
        seconds: time that the rank spent on it.
    """

    chunk: int
    rank: int
    file: str
    tally: Mapping[str, Any]
    seconds: float


@dataclass
class _RankState:
    """What a rank reports about itself."""

    state: str
    host: str
    pid: int
    beat: int
    chunk: int | None = None
    deadly: bool = False
    error: str = ""
    trace: str = ""


class RankBeat:
    """A rank's side: beats while its context is open, and notices an abort.

    Args:
        folder: the control folder.
        rank: this rank.
    """

    def __init__(self, folder: str, rank: int) -> None:
        self._folder = folder
        self._file = join(folder, _rank_file(rank))
        self._state = _RankState(STARTING, socket.gethostname(), os.getpid(), beat=0)
        self._changed = threading.Condition()
        self._closing = False
        self._aborted: str | None = None
        self._pause_s = _beat_s(folder)
        self._thread = threading.Thread(target=self._run, name="sparkinfer-beat", daemon=True)

    def __enter__(self) -> RankBeat:
        if read_text(self._file) is not None:
            # Spark restarts a failed task; a second process must not continue where the first may
            # have left rows.
            replace_text(join(self._folder, RESTARTED_FILE), "")
            raise RunAbortedError("this rank ran before")
        try:
            _insist(self._write)
        except FileNotFoundError:
            raise ControlFolderError(
                f"{self._folder} does not exist on {self._state.host}: driver and executors must "
                "reach the output at the same path"
            ) from None
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            if error is not None and not isinstance(error, RunAbortedError):
                self._state.error = f"{type(error).__name__}: {error}"
                self._state.trace = "".join(traceback.format_exception(kind, error, trace))
                self._state.state = FAILED
                self._state.deadly = self._state.deadly or isinstance(error, DeviceError)
            self._changed.notify()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):  # the driver has cleaned up
            _insist(self._write)

    def check(self) -> None:
        """Raises RunAbortedError if the run was aborted; cheap, to be called between batches."""
        if self._aborted is not None:
            raise RunAbortedError(self._aborted)

    def enter(self, state: str) -> None:
        """Tells the driver what the rank is doing."""
        with self._changed:
            self._state.state = state
            self._changed.notify()

    def begin(self, chunk: int) -> None:
        """Tells the driver which chunk the rank starts to score."""
        with self._changed:
            self._state.chunk = chunk
            self._changed.notify()

    def add(self, result: RankResult) -> None:
        """Tells the driver about a file that is complete."""
        path = join(self._folder, RESULTS, f"{result.chunk:08d}-{result.rank:05d}.json")
        _insist(lambda: replace_text(path, json.dumps(vars(result))))

    def fail(self, error: str, trace: str) -> None:
        """Tells the driver before returning that the rank failed; for a process about to end."""
        with self._changed:
            self._closing = True
            self._state.state, self._state.error, self._state.trace = FAILED, error, trace
            self._state.deadly = True
            self._changed.notify()
        self._thread.join()  # a beat still being written would overwrite this
        _insist(self._write)

    def _run(self) -> None:
        last_beat, last_change = -1, time.monotonic()
        while not self._closing:
            try:
                driver = _read(join(self._folder, DRIVER_FILE)) or {}
                if driver.get("beat", -1) != last_beat:
                    last_beat, last_change = driver.get("beat", -1), time.monotonic()
                if driver.get("abort"):
                    self._aborted = str(driver["abort"])
                self._state.beat += 1
                self._write()
            except FileNotFoundError:  # the driver has given up and cleaned up
                self._aborted = f"{self._folder} is gone"
            except Exception as error:  # a flaky store; the driver detects silence
                logger.warning("no beat: %s", error)
            if time.monotonic() - last_change > DRIVER_LOST_AFTER_S:
                self._aborted = self._aborted or "the driver is gone"
            with self._changed:
                if not self._closing:
                    self._changed.wait(self._pause_s)

    def _write(self) -> None:
        with self._changed:
            text = json.dumps(vars(self._state))
        replace_text(self._file, text)


class Supervisor:
    """The driver's side: watches the ranks while its context is open, and aborts the run.

    Attributes:
        deadly_chunk: number of the chunk over which a rank died or hung; None if none did.

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
        self.deadly_chunk: int | None = None
        self._results = join(folder, RESULTS)
        self._known_results: set[str] = set()
        self._on_result = on_result
        self._ranks: list[_RankState | None] = [None] * world_size
        self._seen = [time.monotonic()] * world_size
        self._looks = [0] * world_size
        self._pause_s = _beat_s(folder)
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
        _insist(self._look)
        _insist(self._collect)
        _insist(self._judge)
        if self._failure is None and not self._all_done():
            self._failure = self._unfinished(launch_error)
        if self._failure is not None:
            cause = (
                RankTracebackError(f"in the rank:\n{self._trace}") if self._trace else launch_error
            )
            raise JobError(self._failure) from cause

    def _run(self) -> None:
        aborted_at = None
        while not self._closed.wait(self._pause_s):
            for act in (self._look, self._judge, self._write, self._collect):
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
                return _read(file)
            except Exception as error:
                errors.append(error)
                return None

        files = [join(self._folder, _rank_file(rank)) for rank in range(len(self._ranks))]
        with ThreadPoolExecutor(min(READERS, len(files))) as pool:
            states = list(pool.map(read, files))
        for rank, (values, known) in enumerate(zip(states, self._ranks, strict=True)):
            self._looks[rank] += 1
            if values is None:
                continue
            found = _RankState(**values)
            if found != known:
                self._ranks[rank], self._seen[rank] = found, time.monotonic()
                self._looks[rank] = 0
            if found.state in (SCORING, DONE) and not self._scoring:
                self._scoring = True
                self._on_scoring()
        if errors:
            raise errors[0]

    def _collect(self) -> None:
        """Reads the results that have arrived since the last call."""
        new = [name for name in names_in(self._results) if name.endswith(".json")]
        for name in new:
            if name not in self._known_results:
                values = _read(join(self._results, name))
                if values is None:
                    continue
                self._on_result(RankResult(**values))
                self._known_results.add(name)
            with contextlib.suppress(OSError):  # a long run has many, and each look lists them
                remove(join(self._results, name))

    def _judge(self) -> None:
        self._failure = self._failure or self._find_failure()

    def _find_failure(self) -> str | None:
        """Returns why the run can no longer succeed, None if it still can."""
        now = time.monotonic()
        for rank, state in enumerate(self._ranks):
            if state is None:
                if now - self._started > self._start_timeout_s:
                    return self._did_not_start(rank)
            elif state.state == FAILED:
                self._trace = state.trace
                self.deadly_chunk = state.chunk if state.deadly else None
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
        self.deadly_chunk = state.chunk
        return f"{_name(rank, state)} {what}: {_ADVICE}"

    def _lost(self, rank: int, state: _RankState) -> str:
        self.deadly_chunk = state.chunk
        return f"{_name(rank, state)} has been silent for {RANK_LOST_AFTER_S:.0f} s: {_ADVICE}"

    def _did_not_start(self, rank: int) -> str:
        running = sum(state is not None for state in self._ranks)
        return (
            f"rank {rank} did not start within {self._start_timeout_s:.0f} s ({running} of "
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


def _beat_s(folder: str) -> float:
    return BEAT_S if renames_atomically(folder) else BEAT_ON_OBJECT_STORE_S


def _insist(act: Callable[[], None]) -> None:
    """Does what must succeed, retrying if the store fails; raises if it keeps failing."""
    for attempt in range(ATTEMPTS):
        try:
            act()
            return
        except FileNotFoundError:
            raise
        except Exception as error:
            if attempt == ATTEMPTS - 1:
                raise ControlFolderError(f"the ranks' folder: {error}") from error
            logger.warning("will retry: %s", error)
            time.sleep(ATTEMPT_PAUSE_S)


def _name(rank: int, state: _RankState) -> str:
    return f"rank {rank} (process {state.pid} on {state.host})"


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _read(path: str) -> dict[str, Any] | None:
    """Returns what a state file holds, None if it is missing or incomplete."""
    text = read_text(path)
    try:
        values: dict[str, Any] | None = json.loads(text) if text else None
    except ValueError:  # on a file system without atomic renames, read while it is written
        return None
    return values
