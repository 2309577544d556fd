"""What the files of a lease folder say: one per epoch, written by that epoch's holder."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from sparkinfer.logs import get_logger
from sparkinfer.storage import file_system, join, read_text

logger = get_logger(__name__)

EPOCH_FILE = re.compile(r"epoch-(\d+)\.json(.*)")


@dataclass(frozen=True)
class Holder:
    """The process that holds an output folder, or held it last.

    Attributes:
        epoch: number of holders so far.
        host: where it runs; None if its file is damaged.
        pid: its process there; None if its file is damaged.
        since: when it took the lease by its host's clock, ISO 8601 in UTC; None likewise.
        released: whether it has released the lease.
        is_gone: whether it is a process of this machine that has ended.
        since_beat_s: seconds since its last heartbeat, by the store's modification time and the
            local clock; None if the store has no such time.
    """

    epoch: int
    host: str | None
    pid: int | None
    since: str | None
    released: bool
    is_gone: bool
    since_beat_s: float | None


@dataclass(frozen=True)
class Claim:
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
class Look:
    """The latest epoch, 0 if there is none, and the text of its file."""

    epoch: int
    text: str


def read_holder(folder: str) -> Holder | None:
    """Returns the current or last holder of a lease folder, None if there never was one."""
    look = look_into(folder)
    if look.epoch == 0:
        return None
    claim = parse(look.text)
    age_s = _since_change_s(epoch_file(folder, look.epoch))
    if claim is None:
        return Holder(look.epoch, None, None, None, False, False, age_s)
    is_gone = not claim.released and _is_gone(claim)
    return Holder(look.epoch, claim.host, claim.pid, claim.since, claim.released, is_gone, age_s)


def look_into(folder: str) -> Look:
    """Returns the latest epoch and what its file says."""
    latest = max(epochs_in(folder), default=0)
    return Look(latest, (read_claim(epoch_file(folder, latest)) or "") if latest else "")


def epochs_in(folder: str) -> set[int]:
    """Returns the epochs that have a file."""
    return {epoch for epoch, rest, _ in entries_in(folder) if not rest}


def entries_in(folder: str) -> list[tuple[int, str, str]]:
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


def is_there(folder: str, epoch: int) -> bool:
    """Returns whether an epoch has a file, without a listing."""
    return read_claim(epoch_file(folder, epoch)) is not None


def epoch_file(folder: str, epoch: int) -> str:
    """Returns the path of an epoch's file."""
    return join(folder, f"epoch-{epoch:08d}.json")


def read_claim(file: str) -> str | None:
    """Returns the text of a file, empty if it is damaged, None if it is missing."""
    try:
        return read_text(file)
    except UnicodeDecodeError:
        return ""


def parse(text: str | None) -> Claim | None:
    """Returns what the file of an epoch holds, None if it is damaged."""
    try:
        claim = Claim(**json.loads(text or ""))
    except (TypeError, ValueError):
        return None
    types_fit = isinstance(claim.host, str) and isinstance(claim.released, bool)
    return claim if types_fit and isinstance(claim.pid, int) else None


def text_of(claim: Claim) -> str:
    """Returns what the file of an epoch is to hold."""
    return json.dumps(asdict(claim))


def token_of(text: str | None) -> str | None:
    """Returns what tells this claim from any other, None if the file is damaged or missing."""
    claim = parse(text)
    return claim.token if claim else None


def describe(look: Look) -> str:
    """Returns the holder of an epoch, for people."""
    claim = parse(look.text)
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


def is_free(look: Look) -> bool:
    """Returns whether it is clear, without watching, that nobody holds this epoch any more."""
    claim = parse(look.text)
    if look.epoch == 0 or (claim is not None and claim.released):
        return True
    if claim is None or not _is_gone(claim):
        return False
    logger.warning("%s is gone; taking over", describe(look))
    return True


def _is_gone(claim: Claim) -> bool:
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


def new_claim() -> Claim:
    """Returns a claim of this process."""
    pid = os.getpid()
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Claim(
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
