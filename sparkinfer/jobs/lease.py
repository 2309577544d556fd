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
import inspect
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from sparkinfer.exceptions import JobError, OutputError, SparkInferError
from sparkinfer.logs import get_logger
from sparkinfer.storage import (
    WORK_FOLDER,
    file_system,
    join,
    make_folder,
    read_text,
    remove,
    renames_atomically,
    replace_text,
    write_text,
)

logger = get_logger(__name__)

BEAT_S = 2.0
"""Time between two heartbeats of the holder."""

LOST_AFTER_S = 10.0
"""A holder whose count does not change for this long is taken for dead; it stops at half of it."""

BEAT_ON_OBJECT_STORE_S, LOST_AFTER_ON_OBJECT_STORE_S = 10.0, 45.0
"""Longer: there, each heartbeat is a billed request, and a request may take seconds."""

SETTLE_S = 5.0
"""If a store cannot create exclusively: longer than it takes to look for a file and write it."""

LOOKS_PER_BEAT = 4
ATTEMPTS = 5
EPOCHS_KEPT = 2

STORES_THAT_CREATE_EXCLUSIVELY = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""Elsewhere fsspec's `mode="create"` may check and then write, so that two can both succeed."""

CLIENT_IS_TOO_OLD = frozenset({"ParamValidationError", "TypeError"})
"""What botocore before 1.35.20 raises for a conditional request, without sending it."""

EPOCH_FILE = re.compile(r"epoch-(\d+)\.json(.*)")

T = TypeVar("T")


class LeaseLostError(JobError):
    """The process no longer holds its output folder and must not publish there."""


@dataclass(frozen=True)
class Holder:
    """The process that holds an output folder, or held it last.

    Attributes:
        epoch: number of holders so far.
        host: where it runs; None if its file is damaged.
        pid: its process there; None if its file is damaged.
        since: when it took the lease by its host's clock, ISO 8601 in UTC; None likewise.
        released: whether it has released the lease.
        since_beat_s: seconds since its last heartbeat, by the store's modification time and the
            local clock; None if the store has no such time.
    """

    epoch: int
    host: str | None
    pid: int | None
    since: str | None
    released: bool
    since_beat_s: float | None


@dataclass(frozen=True)
class _Claim:
    """What the file of an epoch holds."""

    host: str
    pid: int
    place: str
    start_id: str
    token: str
    since: str
    beat: int = 0
    released: bool = False


@dataclass(frozen=True)
class _Look:
    """The latest epoch, 0 if there is none, and the text of its file."""

    epoch: int
    text: str


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
    """

    def __init__(
        self,
        folder: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        beat_s: float | None = None,
        lost_after_s: float | None = None,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.epoch = 0
        self._folder = folder
        self._clock = clock
        self._local = local = renames_atomically(folder)
        self._beat_s = beat_s or (BEAT_S if local else BEAT_ON_OBJECT_STORE_S)
        self._lost_after_s = lost_after_s or (
            LOST_AFTER_S if local else LOST_AFTER_ON_OBJECT_STORE_S
        )
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
        create exclusively.

        Raises:
            LeaseLostError: a later epoch exists, no heartbeat could be written for half of
                `lost_after_s`, or this process does not hold the lease. A lost lease stays lost.
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
                if self._is_stale():
                    silent_s = self._clock() - self._beaten_at
                    self._lost = f"no heartbeat could be written for {silent_s:.0f} s ({error})"
                self._closing.wait(self._retry_s)
        if self._lost is not None:
            raise LeaseLostError(
                f"the lease of {self._name()} (epoch {self.epoch}) is lost: {self._lost}; this run "
                "writes nothing more there. Run again once no other run writes there"
            )

    def release(self) -> None:
        """Releases the lease, if it is held; a failing store is only logged."""
        if self._thread is None or self._pid != os.getpid():  # a forked child does not hold it
            return
        thread, self._thread = self._thread, None
        self._closing.set()
        thread.join(self._lost_after_s / 2)
        try:
            with self._locked():
                self._lost = self._lost or self._find_loss()
                if self._lost is None:
                    self._write(replace(self._claim, released=True))
        except Exception as error:
            logger.warning("%s: releasing the lease failed: %s", self._name(), error)

    def _wait_until_free(self) -> _Look:
        """Returns the latest epoch once its holder has released it or is taken for dead.

        Raises:
            OutputError: the holder is alive.
        """
        seen, then, still_s = self._look(), self._clock(), 0.0
        while not _is_free(seen):
            if still_s >= self._lost_after_s:
                logger.warning("%s: %s is silent; taking over", self._name(), _describe(seen))
                break
            if still_s == 0:
                logger.info("%s: watching %s", self._name(), _describe(seen))
            time.sleep(self._retry_s)
            found, now = self._look(), self._clock()
            if found != seen and not _is_free(found):
                raise self._taken(found)
            # Time without looks is not silence: the holder may have been suspended along with us.
            still_s += min(max(now - then, 0.0), self._beat_s)
            seen, then = found, now
        return seen

    def _take(self, previous: _Look) -> bool:
        """Claims the epoch after a free one; returns whether this process got it."""
        epoch, claim = previous.epoch + 1, _new_claim()
        self._claim, self._beaten_at = claim, self._clock()
        file = _file(self._folder, epoch)
        try:
            if self._create(file, _text(claim)) and self._may_keep(epoch, previous):
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
        create = _create_local if self._local else _create_on_store
        self._exclusive = self._insist(lambda: create(file, text))
        if not self._exclusive:
            time.sleep(self._settle_s)
        # An error may answer a request that was sent twice: only the token is conclusive.
        return self._insist(lambda: _token(_read(file))) == self._claim.token

    def _may_keep(self, epoch: int, previous: _Look) -> bool:
        if max(self._insist(lambda: _epochs(self._folder)), default=0) > epoch:
            return False  # this process slept between its look and its claim
        if previous.epoch == 0:
            return True
        text = self._insist(lambda: _read(_file(self._folder, previous.epoch)))
        return (text or "") == previous.text  # otherwise the holder has woken up

    def _withdraw(self, file: str) -> None:
        if _token(_read(file)) == self._claim.token:
            remove(file)

    def _remove_old(self) -> None:
        """Removes the epochs before the last ones, oldest first: `_find_loss` relies on that."""
        try:
            for epoch, rest, name in _entries(self._folder):
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

    def _write(self, claim: _Claim) -> None:
        started = self._clock()
        replace_text(_file(self._folder, self.epoch), _text(claim))
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
        epochs = _epochs(self._folder)
        latest = max(epochs, default=0)
        # A local listing may miss a file that is being replaced. The next epoch's file is checked
        # before our own: it is the last to go if both are removed.
        if self._local and latest <= self.epoch and _is_there(self._folder, self.epoch + 1):
            latest = self.epoch + 1
        if latest > self.epoch:
            text = _read(_file(self._folder, latest)) or ""
            return f"{_describe(_Look(latest, text))} has taken over"
        if self._exclusive and self.epoch in epochs:
            return None
        own = _read(_file(self._folder, self.epoch))
        if own is None:
            return "its file was removed"
        if _token(own) not in (None, self._claim.token):
            return f"{_describe(_Look(self.epoch, own))} has claimed the same epoch"
        return None

    def _look(self) -> _Look:
        return self._insist(lambda: _look(self._folder))

    def _insist(self, read: Callable[[], T]) -> T:
        """Returns what is read; tries several times if the store fails."""
        for _ in range(ATTEMPTS - 1):
            try:
                return read()
            except Exception as error:
                logger.info("%s: will retry: %s", self._name(), error)
                time.sleep(self._retry_s)
        return read()

    def _taken(self, holder: _Look) -> OutputError:
        return OutputError(
            f"{self._name()} is being written by {_describe(holder)}, expected no other run; wait "
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


def read_holder(folder: str) -> Holder | None:
    """Returns the current or last holder of a lease folder, None if there never was one."""
    look = _look(folder)
    if look.epoch == 0:
        return None
    claim = _parse(look.text)
    age_s = _since_change_s(_file(folder, look.epoch))
    if claim is None:
        return Holder(look.epoch, None, None, None, released=False, since_beat_s=age_s)
    return Holder(look.epoch, claim.host, claim.pid, claim.since, claim.released, age_s)


def _look(folder: str) -> _Look:
    latest = max(_epochs(folder), default=0)
    return _Look(latest, (_read(_file(folder, latest)) or "") if latest else "")


def _epochs(folder: str) -> set[int]:
    return {epoch for epoch, rest, _ in _entries(folder) if not rest}


def _entries(folder: str) -> list[tuple[int, str, str]]:
    """Returns epoch, suffix and name of each epoch's files, lowest epoch first.

    A file with a suffix was about to be renamed to an epoch's file.
    """
    fs, path = file_system(folder)
    fs.invalidate_cache(path)  # file systems cache listings
    try:
        names = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False)]
    except FileNotFoundError:
        return []
    matches = [match for match in map(EPOCH_FILE.fullmatch, names) if match]
    return sorted((int(match[1]), match[2], match[0]) for match in matches)


def _is_there(folder: str, epoch: int) -> bool:
    return _read(_file(folder, epoch)) is not None


def _file(folder: str, epoch: int) -> str:
    return join(folder, f"epoch-{epoch:08d}.json")


def _read(file: str) -> str | None:
    """Returns the text of a file, empty if it is damaged, None if it is missing."""
    try:
        return read_text(file)
    except UnicodeDecodeError:
        return ""


def _parse(text: str | None) -> _Claim | None:
    """Returns what the file of an epoch holds, None if it is damaged."""
    try:
        claim = _Claim(**json.loads(text or ""))
    except (TypeError, ValueError):
        return None
    types_fit = isinstance(claim.host, str) and isinstance(claim.released, bool)
    return claim if types_fit and isinstance(claim.pid, int) else None


def _text(claim: _Claim) -> str:
    return json.dumps(asdict(claim))


def _token(text: str | None) -> str | None:
    claim = _parse(text)
    return claim.token if claim else None


def _describe(look: _Look) -> str:
    claim = _parse(look.text)
    if claim is None:
        return f"a process whose file is damaged (epoch {look.epoch})"
    return f"process {claim.pid} on {claim.host} (epoch {look.epoch}, since {claim.since})"


def _since_change_s(file: str) -> float | None:
    fs, name = file_system(file)
    try:
        modified: datetime = fs.modified(name)
    except Exception:  # not every store has it, and errors differ
        return None
    if modified.tzinfo is None:  # fsspec before 2024
        modified = modified.replace(tzinfo=timezone.utc)
    return max(0.0, time.time() - modified.timestamp())


def _is_free(look: _Look) -> bool:
    """Returns whether it is clear, without watching, that nobody holds this epoch any more."""
    claim = _parse(look.text)
    if look.epoch == 0 or (claim is not None and claim.released):
        return True
    if claim is None or not _is_gone(claim):
        return False
    logger.warning("%s is gone; taking over", _describe(look))
    return True


def _is_gone(claim: _Claim) -> bool:
    """Returns whether it is certain that a process of this machine has ended."""
    if not claim.place or (claim.host, claim.place) != (socket.gethostname(), _place()):
        return False
    try:
        os.kill(claim.pid, 0)  # unlike /proc, correct even where others' processes are hidden
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    state, start_id = _process(claim.pid)
    # A killed process that its parent has not yet reaped is a zombie.
    return state in ("Z", "X") or (bool(start_id) and start_id != claim.start_id)


def _new_claim() -> _Claim:
    pid = os.getpid()
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return _Claim(
        socket.gethostname(), pid, _place(), _process(pid)[1], uuid.uuid4().hex, since=since
    )


def _place() -> str:
    """Returns what two processes share only if each can tell by pid whether the other is alive.

    Containers may share a host's name but not its processes. Empty if there is no /proc.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, str]:
    """Returns state and start time, in ticks since boot, of a process; empty if unknown.

    Source: proc(5), fields 3 and 22 of /proc/PID/stat; field 2 may hold blanks and parentheses.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _create_local(file: str, text: str) -> bool:
    """Creates a file, complete from the start, unless it exists.

    Returns:
        Whether it is certain that no two processes can both have created it.
    """
    path = Path(file_system(file)[1])
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    partial.write_text(text, encoding="utf-8")
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(partial)
        return True
    except OSError:  # a mounted store may lack hard links, and may check only on closing
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as handle:
            handle.write(text)
        return False
    finally:
        partial.unlink(missing_ok=True)


def _create_on_store(file: str, text: str) -> bool:
    """Creates an object unless it exists.

    Returns:
        Whether it is certain that no two processes can both have created it.

    Raises:
        Exception: whatever the store raises; the object may still appear.
    """
    fs, name = file_system(file)
    option = _exclusive_option(fs)
    if option:
        try:
            fs.pipe_file(name, text.encode("utf-8"), **option)
            return _refuses(fs, name, text, option)
        except FileExistsError:
            return True
        except Exception as error:
            if read_text(file) is not None:
                return False
            # Another's claim may be on its way: an unconditional one of ours would overwrite it.
            if type(error).__name__ not in CLIENT_IS_TOO_OLD:
                raise
            logger.info("%s was not created exclusively: %s", file, error)
    if read_text(file) is None:
        write_text(file, text)
    return False


def _refuses(fs: Any, name: str, text: str, option: dict[str, Any]) -> bool:
    """Returns whether a second creation fails: some stores ignore the condition."""
    try:
        fs.pipe_file(name, text.encode("utf-8"), **option)
    except FileExistsError:
        return True
    except Exception as error:
        logger.info("%s: %s", name, error)
    return False


def _exclusive_option(fs: Any) -> dict[str, Any] | None:
    """Returns the option that makes a file system create exclusively, None if it cannot."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not protocols & STORES_THAT_CREATE_EXCLUSIVELY:
        return None
    parameters = inspect.signature(getattr(fs, "_pipe_file", fs.pipe_file)).parameters
    if "mode" in parameters:  # s3fs and gcsfs since 2024
        return {"mode": "create"}
    return {"overwrite": False} if "overwrite" in parameters else None  # adlfs
