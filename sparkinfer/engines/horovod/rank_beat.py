"""The rank's side of the control folder; see `sparkinfer.engines.horovod.control`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import traceback
from types import TracebackType

from sparkinfer.engines.horovod.control import (
    DRIVER_FILE,
    FAILED,
    RESTARTED_FILE,
    RESULTS,
    STARTING,
    ControlFolderError,
    RankResult,
    RankState,
    RunAbortedError,
    beat_interval_s,
    insist,
    rank_file,
    read_state,
)
from sparkinfer.exceptions import DeviceError, SparkInferError
from sparkinfer.logs import get_logger
from sparkinfer.messages import first_line
from sparkinfer.storage import join, read_text, replace_text

logger = get_logger(__name__)

DRIVER_LOST_AFTER_S = 60.0
"""A rank ends itself if the driver's count does not change for this long."""


class RankBeat:
    """Beats while its context is open, and notices an abort.

    Args:
        folder: the control folder.
        rank: this rank.
    """

    def __init__(self, folder: str, rank: int) -> None:
        self._folder = folder
        self._file = join(folder, rank_file(rank))
        self._state = RankState(STARTING, socket.gethostname(), os.getpid(), beat=0)
        self._changed = threading.Condition()
        self._closing = False
        self._aborted: str | None = None
        self._pause_s = beat_interval_s(folder)
        self._thread = threading.Thread(target=self._run, name="sparkinfer-beat", daemon=True)

    def __enter__(self) -> RankBeat:
        if read_text(self._file) is not None:
            # Spark restarts a failed task; a second process must not continue where the first may
            # have left rows.
            replace_text(join(self._folder, RESTARTED_FILE), "")
            raise RunAbortedError("this rank ran before")
        try:
            insist(self._write)
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
                is_ours = isinstance(error, SparkInferError)  # one line, which may be a long one
                said = str(error) if is_ours else first_line(error)
                self._state.error = f"{type(error).__name__}: {said}"
                self._state.trace = "".join(traceback.format_exception(kind, error, trace))
                self._state.state = FAILED
                self._state.deadly = self._state.deadly or isinstance(error, DeviceError)
            self._changed.notify()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):  # the driver has cleaned up
            insist(self._write)

    def check(self) -> None:
        """Raises RunAbortedError if the run was aborted; cheap, to be called between batches."""
        if self._aborted is not None:
            raise RunAbortedError(self._aborted)

    def pause(self) -> None:
        """Waits as long as between two beats; raises RunAbortedError if the run was aborted."""
        self.check()
        time.sleep(self._pause_s)
        self.check()

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
        insist(lambda: replace_text(path, json.dumps(vars(result))))

    def fail(self, error: str, trace: str) -> None:
        """Tells the driver before returning that the rank failed; for a process about to end."""
        with self._changed:
            self._closing = True
            self._state.state, self._state.error, self._state.trace = FAILED, error, trace
            self._state.deadly = True
            self._changed.notify()
        self._thread.join()  # a beat still being written would overwrite this
        insist(self._write)

    def _run(self) -> None:
        last_beat, last_change = -1, time.monotonic()
        while not self._closing:
            try:
                driver = read_state(join(self._folder, DRIVER_FILE)) or {}
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
