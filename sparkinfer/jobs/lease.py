"""One writer at a time on an output folder.

Each holder has an epoch, and each epoch a file in the lease folder; the highest epoch is the
current holder's. A process that takes over creates the file of the next epoch, which only one can
do. The holder keeps rewriting its file with a growing count. Counts are compared with earlier ones,
clocks of different machines never.

A holder that was taken for dead may wake up. So a holder first writes its count and then looks for
a later epoch, and a process that takes over first creates the later epoch and then checks that the
count has not changed: in whatever order these happen, one of the two steps back. This does not stop
what was started before a holder steps back: the time between `check` and the end of what follows it
is not guarded.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from sparkinfer.disk_errors import is_passing
from sparkinfer.exceptions import JobError, OutputError, SparkInferError
from sparkinfer.exclusive import create_exclusively
from sparkinfer.jobs.claims import (
    Claim,
    Look,
    describe,
    entries_in,
    epoch_file,
    epochs_in,
    is_free,
    is_there,
    look_into,
    new_claim,
    read_claim,
    text_of,
    token_of,
)
from sparkinfer.logs import get_logger
from sparkinfer.storage import (
    WORK_FOLDER,
    is_local_path,
    is_on_disk,
    join,
    make_folder,
    remove,
    remove_if_empty,
    replace_text,
)

logger = get_logger(__name__)

BEAT_S = 2.0
"""Time between two heartbeats of the holder."""

LOST_AFTER_S = 10.0
"""A holder whose count does not change for this long is taken for dead; it stops at half of it."""

BEAT_ELSEWHERE_S, LOST_AFTER_ELSEWHERE_S = 10.0, 45.0
"""On object stores and mounts: there, each heartbeat is a request, which may take seconds."""

GIVE_UP_AFTER_S = 600.0
"""A holder whose store does not answer waits for it this long, and publishes nothing meanwhile: if
another has taken over by then, it will see that."""

SETTLE_S = 5.0
"""If a store cannot create exclusively: longer than it takes to look for a file and write it."""

LOOKS_PER_BEAT = 4
ATTEMPTS = 5
EPOCHS_KEPT = 2

T = TypeVar("T")


class LeaseLostError(JobError):
    """The process no longer holds its output folder and must not publish there."""


class Lease:
    """The right to write to an output folder, held while the context is open.

    Args:
        folder: the lease folder, `OUTPUT/_sparkinfer/lease`.
        clock: returns monotonic seconds.
        beat_s: seconds between two heartbeats; None: the default for the store.
        lost_after_s: seconds without a change of its count after which a holder is taken for dead;
            None: the default for the store.
        settle_s: seconds that a claim must stand on a store that cannot create exclusively; at most
            half of `lost_after_s`.
        give_up_after_s: seconds without a heartbeat after which a store that fails is given up.
    """

    def __init__(
        self,
        folder: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        beat_s: float | None = None,
        lost_after_s: float | None = None,
        settle_s: float = SETTLE_S,
        give_up_after_s: float = GIVE_UP_AFTER_S,
    ) -> None:
        self.epoch = 0
        self._folder = folder
        self._clock = clock
        self._local, on_disk = is_local_path(folder), is_on_disk(folder)
        self._beat_s = beat_s or (BEAT_S if on_disk else BEAT_ELSEWHERE_S)
        self._lost_after_s = lost_after_s or (LOST_AFTER_S if on_disk else LOST_AFTER_ELSEWHERE_S)
        self._give_up_after_s = give_up_after_s
        self._settle_s = settle_s
        self._retry_s = self._beat_s / LOOKS_PER_BEAT
        self._exclusive = False
        self._lost: str | None = None
        self._pid: int | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the lease, and beats until it is released or lost.

        A lease that was released, or held by a process of this machine that is gone, is taken
        immediately. Otherwise the holder is watched, for up to `lost_after_s` if it does not beat.

        Raises:
            OutputError: another process holds the folder, or the folder cannot be written.
        """
        if self._thread is not None:
            raise RuntimeError("the lease is already acquired; release it first")
        try:
            make_folder(self._folder)
            while not self._take(self._wait_until_free()):
                logger.info("%s: another process was faster; looking again", self._folder)
        except SparkInferError:
            raise
        except Exception as error:  # each store has its own errors
            raise self._unusable(error) from error
        self._pid, self._lost = os.getpid(), None
        self._closing.clear()
        self._thread = threading.Thread(target=self._run, name="sparkinfer-lease", daemon=True)
        self._thread.start()
        self._remove_old()

    def check(self) -> None:
        """Raises unless the lease is still held; call it right before what must not happen twice.

        Cost: one request, a listing; more if the last heartbeat is too long ago or the store cannot
        create exclusively. It waits for a store that does not answer.

        Raises:
            LeaseLostError: a later epoch exists, the store refuses heartbeats or has not answered
                for `give_up_after_s`, or this process does not hold the lease. A lost lease stays
                lost.
        """
        if self._thread is None or self._pid != os.getpid():
            raise LeaseLostError(f"{self._name()} is not leased by process {os.getpid()}")
        while self._lost is None:
            try:
                if self._is_stale():
                    self._beat()
                self._lost = self._lost or self._find_loss()
                break
            except Exception as error:  # a flaky store
                silent_s = self._clock() - self._beaten_at
                if self._is_stale() and (silent_s > self._give_up_after_s or not is_passing(error)):
                    self._lost = f"no heartbeat could be written for {silent_s:.0f} s ({error})"
                self._closing.wait(self._retry_s)
        if self._lost is not None:
            raise LeaseLostError(
                f"the lease of {self._name()} (epoch {self.epoch}) is lost: {self._lost}; this run "
                "writes nothing more there. Run again once no other run writes there"
            )

    def forget(self) -> None:
        """Removes the lease's folder and gives the lease up; for a run that has done nothing.

        Who looks meanwhile sees a holder, or no lease at all.
        """
        if not self._stop():
            return
        try:
            with self._locked():
                if (self._lost or self._find_loss()) is None:
                    for epoch, _, name in entries_in(self._folder):
                        if epoch <= self.epoch:  # a later one has just taken over
                            remove(join(self._folder, name))
                    remove_if_empty(self._folder)
        except Exception as error:
            logger.warning("%s: removing the lease failed: %s", self._name(), error)

    def release(self) -> None:
        """Releases the lease, if it is held; a failing store is only logged."""
        if not self._stop():
            return
        try:
            with self._locked():
                self._lost = self._lost or self._find_loss()
                if self._lost is None:
                    self._write(replace(self._claim, released=True))
        except Exception as error:
            logger.warning("%s: releasing the lease failed: %s", self._name(), error)

    def _stop(self) -> bool:
        """Ends the heartbeats; returns whether this process held the lease."""
        if self._thread is None or self._pid != os.getpid():  # a forked child does not hold it
            return False
        thread, self._thread = self._thread, None
        self._closing.set()
        thread.join(self._lost_after_s / 2)
        return True

    def _wait_until_free(self) -> Look:
        """Returns the latest epoch once its holder has released it or is taken for dead.

        Raises:
            OutputError: the holder is alive.
        """
        seen, then, still_s = self._look(), self._clock(), 0.0
        while not is_free(seen):
            if still_s >= self._lost_after_s:
                logger.warning("%s: %s is silent; taking over", self._name(), describe(seen))
                break
            if still_s == 0:
                logger.info("%s: watching %s", self._name(), describe(seen))
            time.sleep(self._retry_s)
            found, now = self._look(), self._clock()
            if found != seen and not is_free(found):
                raise self._taken(found)
            # Time without looks is not silence: the holder may have been suspended along with us.
            still_s += min(max(now - then, 0.0), self._beat_s)
            seen, then = found, now
        return seen

    def _take(self, previous: Look) -> bool:
        """Claims the epoch after a free one; returns whether this process got it."""
        epoch, claim = previous.epoch + 1, new_claim()
        self._claim, self._beaten_at = claim, self._clock()
        file = epoch_file(self._folder, epoch)
        try:
            if self._create(file, text_of(claim)) and self._may_keep(epoch, previous):
                self.epoch = epoch
                return True
        except BaseException:
            with contextlib.suppress(Exception):
                self._withdraw(file)
            raise
        self._withdraw(file)
        return False

    def _create(self, file: str, text: str) -> bool:
        """Creates the file; returns whether it now has this text, and not another process's."""
        self._exclusive = self._insist(lambda: create_exclusively(file, text, prove=True))
        if not self._exclusive:
            time.sleep(self._settle_s)
        # An error may answer a request that was sent twice: only the token is conclusive.
        return self._insist(lambda: token_of(read_claim(file))) == self._claim.token

    def _may_keep(self, epoch: int, previous: Look) -> bool:
        if max(self._insist(lambda: epochs_in(self._folder)), default=0) > epoch:
            return False  # this process slept between its look and its claim
        if previous.epoch == 0:
            return True
        text = self._insist(lambda: read_claim(epoch_file(self._folder, previous.epoch)))
        return (text or "") == previous.text  # otherwise the holder has woken up

    def _withdraw(self, file: str) -> None:
        if token_of(read_claim(file)) == self._claim.token:
            remove(file)

    def _remove_old(self) -> None:
        """Removes the epochs before the last ones, oldest first: `_find_loss` relies on that."""
        try:
            for epoch, rest, name in entries_in(self._folder):
                if epoch <= self.epoch - EPOCHS_KEPT or (rest and epoch < self.epoch):
                    remove(join(self._folder, name))
        except Exception as error:  # the next holder tries again
            logger.info("%s: removing old epochs failed: %s", self._name(), error)

    def _run(self) -> None:
        pause_s = self._beat_s
        while self._lost is None and not self._closing.wait(pause_s):
            try:
                self._beat()
                pause_s = self._beat_s
            except Exception as error:  # a flaky store; `check` detects silence
                if pause_s == self._beat_s:
                    logger.warning("%s: no heartbeat: %s", self._name(), error)
                pause_s = self._retry_s

    def _beat(self) -> None:
        with self._locked():
            self._lost = self._lost or self._find_loss()
            if self._lost is None:
                self._write(replace(self._claim, beat=self._claim.beat + 1))

    def _write(self, claim: Claim) -> None:
        started = self._clock()
        replace_text(epoch_file(self._folder, self.epoch), text_of(claim))
        self._claim, self._beaten_at = claim, started

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=self._lost_after_s / 2):
            raise TimeoutError("the store does not answer")
        try:
            yield
        finally:
            self._lock.release()

    def _is_stale(self) -> bool:
        return self._clock() - self._beaten_at > self._lost_after_s / 2

    def _find_loss(self) -> str | None:
        """Returns why the lease is lost, None if it is held."""
        epochs = epochs_in(self._folder)
        latest = max(epochs, default=0)
        # A local listing may miss a file that is being replaced. The next epoch's file is checked
        # before our own: it is the last to go if both are removed.
        if self._local and latest <= self.epoch and is_there(self._folder, self.epoch + 1):
            latest = self.epoch + 1
        if latest > self.epoch:
            text = read_claim(epoch_file(self._folder, latest)) or ""
            return f"{describe(Look(latest, text))} has taken over"
        if self._exclusive and self.epoch in epochs:
            return None
        own = read_claim(epoch_file(self._folder, self.epoch))
        if own is None:
            return "its file was removed"
        if token_of(own) not in (None, self._claim.token):
            return f"{describe(Look(self.epoch, own))} has claimed the same epoch"
        return None

    def _look(self) -> Look:
        return self._insist(lambda: look_into(self._folder))

    def _insist(self, read: Callable[[], T]) -> T:
        """Returns what is read; tries several times if the store fails."""
        for _ in range(ATTEMPTS - 1):
            try:
                return read()
            except Exception as error:
                logger.info("%s: will retry: %s", self._name(), error)
                time.sleep(self._retry_s)
        return read()

    def _taken(self, holder: Look) -> OutputError:
        return OutputError(
            f"{self._name()} is being written by {describe(holder)}, expected no other run; wait "
            "for that run, end that process, or name another folder"
        )

    def _unusable(self, error: Exception) -> OutputError:
        reason = getattr(error, "strerror", None) or error
        return OutputError(
            f"{self._name()} cannot be leased ({reason}); name another folder or fix its "
            "permissions"
        )

    def _name(self) -> str:
        return f"output {self._folder.rstrip('/').removesuffix(f'/{WORK_FOLDER}/lease')!r}"
