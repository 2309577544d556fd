"""A file system with the faults of remote mounts: a folder seen through real FUSE mounts.

    with FuseMount(tmp_path / "backing", tmp_path / "host0", tmp_path / "host1") as mount:
        mount.switch(refused={"rename": "EPERM"}, delays_s={"write": 0.1})

Each mount is a kernel's view of its own, like the one of another host: nothing that one mount knows
is known to the other, unless it asks the folder. A process of its own serves them all, speaks the
kernel's protocol over /dev/fuse, and unmounts once the pipe to the test that started it is closed,
however that test ends. It needs root and no library.

Source: include/uapi/linux/fuse.h of Linux; the protocol is 7.31, in which `struct`s have no holes.
"""

# pathlib knows neither handles of folders nor bytes as names.
# ruff: noqa: PTH101, PTH116, PTH208

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DEVICE = "/dev/fuse"
THREADS = 8
"""Requests that a mount serves at once: a slow one does not hold up the others."""

MAX_WRITE = 2**17
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2


FORGET, INTERRUPT, BATCH_FORGET = 2, 36, 42
NAMES = {
    1: "lookup",
    3: "getattr",
    4: "setattr",
    5: "readlink",
    6: "symlink",
    8: "mknod",
    9: "mkdir",
    10: "unlink",
    11: "rmdir",
    12: "rename",
    13: "link",
    14: "open_file",
    15: "read",
    16: "write",
    17: "statfs",
    18: "release",
    20: "fsync",
    25: "flush",
    26: "init",
    27: "open_folder",
    28: "list",
    29: "release",
    30: "fsync",
    35: "create",
}
"""Operations by their numbers. Those left out are not there; the kernel does without."""


@dataclass(frozen=True)
class Switches:
    """What the mounts do wrong; at first, nothing.

    Operations are called as in `NAMES`; `*` means any of them.

    Attributes:
        refused: error that an operation ends with, such as `EPERM`, by the operation's name. The
            kernel turns ENOSYS for `link` into EPERM.
        refused_for_s: time after which nothing is refused any more; None: never.
        delays_s: time that an operation takes, by its name.
        sequential: a file is written from its first byte to its last, once: what appends to one,
            writes elsewhere in it or cuts it gets EOPNOTSUPP.
        exclusive: whether O_EXCL is honoured. If not, two hosts that both see no such file both
            create it; see `lookup_lag_s`.
        listing_lag_s: time until a folder's listing shows a new name, and no longer a removed one.
        lookup_lag_s: time until a host sees a name that another host made.
    """

    refused: dict[str, str] = field(default_factory=dict)
    refused_for_s: float | None = None
    delays_s: dict[str, float] = field(default_factory=dict)
    sequential: bool = False
    exclusive: bool = True
    listing_lag_s: float = 0.0
    lookup_lag_s: float = 0.0

    def __post_init__(self) -> None:
        unknown = {*self.refused, *self.delays_s} - {"*", *NAMES.values()}
        if unknown:
            raise ValueError(
                f"no operations: {sorted(unknown)}; those are {sorted(NAMES.values())}"
            )


class FuseMount:
    """Mounts of one folder; see this module.

    Args:
        backing: the folder that holds what is written, made if it is not there.
        hosts: where to mount it, also made; each stands for a host.
    """

    def __init__(self, backing: Path, *hosts: Path) -> None:
        self.backing = backing
        self.hosts = hosts

    def __enter__(self) -> FuseMount:
        folders = (self.backing, *self.hosts)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.fuse_mount", *map(str, folders)]
        self._server = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # signals to the test's group are not for it
        )
        self._expect_answer()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._server.stdin.close()
        try:
            self._server.wait(30)
        finally:
            self._server.kill()
            self._server.wait()
            self._server.stdout.close()
            for host in self.hosts:  # in case that it was killed
                _unmount(host)

    def switch(self, **switches: Any) -> None:
        """Sets all of `Switches`: those given, and the others as at first."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(asdict(Switches(**switches))) + "\n")
        self._server.stdin.flush()
        self._expect_answer()

    def _expect_answer(self) -> None:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline().strip()
        if answer != "ok":
            raise RuntimeError(f"the server of the FUSE mount said {answer!r}; see its stderr")


def why_not() -> str | None:
    """Returns why nothing can be mounted here, None if it can."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except OSError as error:
        return f"{DEVICE} cannot be opened: {error.strerror}"
    # CAP_SYS_ADMIN, the 22nd bit: a container's root may lack it.
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.split("CapEff:")[1].split()[0], 16)
    return None if capabilities >> 21 & 1 else "this process may not mount anything"


def _libc(name: str, *arguments: Any) -> None:
    call = getattr(ctypes.CDLL(None, use_errno=True), name)
    if call(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _mount(folder: Path) -> int:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    given = (b"sparkinfer-tests", os.fsencode(folder), b"fuse.sparkinfer_tests")
    _libc("mount", *given, MS_NOSUID | MS_NODEV, options.encode())
    return device


def _unmount(folder: Path) -> None:
    """Unmounts a folder unless nothing is mounted there, whatever still uses it."""
    with contextlib.suppress(OSError):
        _libc("umount2", os.fsencode(folder), MNT_DETACH)


class _Faults:
    """The switches, and the names that appeared and vanished of late, for all mounts."""

    def __init__(self) -> None:
        self._switches = Switches()
        self._until = float("inf")
        self._appeared: dict[tuple[Any, bytes], tuple[float, object]] = {}
        self._vanished: dict[tuple[Any, bytes], float] = {}

    def set(self, switches: Switches) -> None:
        limit = switches.refused_for_s
        self._until = float("inf") if limit is None else time.monotonic() + limit
        self._switches = switches

    @property
    def sequential(self) -> bool:
        return self._switches.sequential

    def meet(self, operation: str) -> None:
        """Takes the time that an operation takes now, then raises what it raises."""
        switches = self._switches
        time.sleep(switches.delays_s.get(operation, switches.delays_s.get("*", 0.0)))
        refusal = switches.refused.get(operation, switches.refused.get("*"))
        if refusal is not None and time.monotonic() < self._until:
            raise OSError(getattr(errno, refusal), refusal)

    def honoured(self, flags: int) -> int:
        return flags if self._switches.exclusive else flags & ~os.O_EXCL

    def appear(self, folder: Any, name: bytes, host: object) -> None:
        self._appeared[folder, name] = (time.monotonic(), host)
        self._vanished.pop((folder, name), None)

    def vanish(self, folder: Any, name: bytes) -> None:
        self._vanished[folder, name] = time.monotonic()
        self._appeared.pop((folder, name), None)

    def is_hidden_from(self, host: object, folder: Any, name: bytes) -> bool:
        since, maker = self._appeared.get((folder, name), (float("-inf"), host))
        return maker is not host and time.monotonic() - since < self._switches.lookup_lag_s

    def listed(self, folder: Any, names: Iterable[bytes]) -> list[bytes]:
        """Returns the names that a folder's listing shows, given those that are there."""
        late = time.monotonic() - self._switches.listing_lag_s
        shown = [name for name in names if self._appeared.get((folder, name), (late,))[0] <= late]
        gone = [n for (of, n), when in list(self._vanished.items()) if of == folder and when > late]
        return shown + gone


class _Node:
    """A file or folder that the kernel knows, whatever it is called now, by a handle."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.lookups = 0

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.handle}"

    def identity(self) -> tuple[int, int]:
        status = os.fstat(self.handle)
        return status.st_dev, status.st_ino


class _Open:
    """An open file, with how much of it was written in order; or an open folder's listing."""

    def __init__(self, handle: int = -1, entries: Iterable[bytes] = ()) -> None:
        self.handle = handle
        self.entries = list(entries)
        self.written = 0
        self.lock = threading.Lock()


class _Host:
    """Serves one mount: reads requests from the device, does them in the folder, answers."""

    def __init__(self, backing: Path, device: int, faults: _Faults) -> None:
        self._device = device
        self._faults = faults
        self._lock = threading.Lock()
        self._nodes = {1: _Node(os.open(backing, os.O_PATH))}
        self._numbers = {self._nodes[1].identity(): 1}
        self._open: dict[int, _Open] = {}
        self._last = 1

    def serve(self) -> None:
        """Answers requests until the mount is gone."""
        buffer = bytearray(MAX_WRITE + 2**16)
        while True:
            try:
                length = os.readv(self._device, [buffer])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue  # ENOENT: the request was withdrawn before it was read
                return
            _, number, unique, node = struct.unpack_from("<IIQQ", buffer)
            answer = self._answer(number, node, bytes(memoryview(buffer)[40:length]))
            if answer is not None:
                code, body = answer
                head = struct.pack("<IiQ", 16 + len(body), -code, unique)
                with contextlib.suppress(OSError):  # the caller was interrupted meanwhile
                    os.writev(self._device, [head, body])

    def _answer(self, number: int, node: int, body: bytes) -> tuple[int, bytes] | None:
        """Returns the error and the body of an answer, None if there is none."""
        if number in (FORGET, BATCH_FORGET, INTERRUPT):
            self._forget(number, node, body)
            return None
        name = NAMES.get(number)
        if name is None:
            return errno.ENOSYS, b""
        try:
            if name != "init":
                self._faults.meet(name)
            return 0, getattr(self, f"_{name}")(node, body) or b""
        except OSError as error:
            return error.errno or errno.EIO, b""

    # What the kernel knows of: nodes and open files.

    def _forget(self, number: int, node: int, body: bytes) -> None:
        pairs: list[Any] = []
        if number == FORGET:
            pairs = [(node, *struct.unpack_from("<Q", body))]
        elif number == BATCH_FORGET:
            [count] = struct.unpack_from("<I", body)
            pairs = list(struct.iter_unpack("<QQ", body[8 : 8 + 16 * count]))
        with self._lock:
            for forgotten, times in pairs:
                known = self._nodes.get(forgotten)
                if known is None or forgotten == 1:
                    continue
                known.lookups -= times
                if known.lookups <= 0:
                    del self._nodes[forgotten], self._numbers[known.identity()]
                    os.close(known.handle)

    def _entry(self, folder: int, name: bytes) -> bytes:
        """Returns what the kernel wants to know of a name, which it knows from then on."""
        at = self._nodes[folder].handle
        node = _Node(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=at))
        with self._lock:
            number = self._numbers.get(node.identity())
            if number is None:
                self._last = number = self._last + 1
                self._nodes[number], self._numbers[node.identity()] = node, number
            else:
                os.close(node.handle)
            self._nodes[number].lookups += 1
        # Nothing may be remembered, neither names nor sizes: the other host changes them.
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + self._attributes(number)

    def _attributes(self, node: int) -> bytes:
        status = os.fstat(self._nodes[node].handle)
        times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        return struct.pack(
            "<QQQQQQIIIIIIIIII",
            *(status.st_ino, status.st_size, status.st_blocks),
            *(when // 10**9 for when in times),
            *(when % 10**9 for when in times),
            *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid),
            *(status.st_rdev, status.st_blksize, 0),
        )

    def _opened(self, opened: _Open) -> bytes:
        with self._lock:
            self._last += 1
            self._open[self._last] = opened
            return struct.pack("<QII", self._last, 0, 0)

    # Requests, in the order of their numbers.

    def _init(self, node: int, body: bytes) -> bytes:
        _, _, ahead, offered = struct.unpack_from("<IIII", body)
        async_read, atomic_truncation, big_writes, parallel = 1, 1 << 3, 1 << 5, 1 << 18
        flags = offered & (async_read | atomic_truncation | big_writes | parallel)
        rest = struct.pack("<HHIIHHI28x", THREADS, THREADS, MAX_WRITE, 1, 32, 0, 0)
        return struct.pack("<IIII", 7, 31, ahead, flags) + rest

    def _lookup(self, node: int, body: bytes) -> bytes:
        name = body.rstrip(b"\0")
        if self._faults.is_hidden_from(self, self._nodes[node].identity(), name):
            raise FileNotFoundError(errno.ENOENT, "hidden")
        return self._entry(node, name)

    def _getattr(self, node: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(node)

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _, size, _, *times = struct.unpack_from("<IIQQQQQQIII", body)
        mode, _, uid, gid, _ = struct.unpack_from("<IIIII", body, 68)
        path = self._nodes[node].path
        if valid & 8:
            if self._faults.sequential and size != os.stat(path).st_size:
                raise OSError(errno.EOPNOTSUPP, "cut")
            os.truncate(path, size)
        if valid & 1:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & (16 | 32):
            self._set_times(path, valid, times)
        return self._getattr(node, body)

    def _set_times(self, path: str, valid: int, times: list[int]) -> None:
        status = os.stat(path)
        kept = (status.st_atime_ns, status.st_mtime_ns)
        wanted = []
        for index, before in enumerate(kept):
            given = times[index] * 10**9 + times[index + 3]
            asked = given if valid & (16 << index) else before
            wanted.append(time.time_ns() if valid & (128 << index) else asked)
        os.utime(path, ns=(wanted[0], wanted[1]))

    def _readlink(self, node: int, body: bytes) -> bytes:
        return os.readlink(b"", dir_fd=self._nodes[node].handle)

    def _symlink(self, node: int, body: bytes) -> bytes:
        name, target = body.split(b"\0")[:2]
        os.symlink(target, name, dir_fd=self._nodes[node].handle)
        return self._new(node, name)

    def _mknod(self, node: int, body: bytes) -> bytes:
        mode, device = struct.unpack_from("<II", body)
        name = body[16:].rstrip(b"\0")
        os.mknod(name, mode, device, dir_fd=self._nodes[node].handle)
        return self._new(node, name)

    def _mkdir(self, node: int, body: bytes) -> bytes:
        [mode] = struct.unpack_from("<I", body)
        name = body[8:].rstrip(b"\0")
        os.mkdir(name, mode, dir_fd=self._nodes[node].handle)
        return self._new(node, name)

    def _new(self, node: int, name: bytes) -> bytes:
        self._faults.appear(self._nodes[node].identity(), name, self)
        return self._entry(node, name)

    def _unlink(self, node: int, body: bytes) -> None:
        os.unlink(body.rstrip(b"\0"), dir_fd=self._nodes[node].handle)
        self._faults.vanish(self._nodes[node].identity(), body.rstrip(b"\0"))

    def _rmdir(self, node: int, body: bytes) -> None:
        os.rmdir(body.rstrip(b"\0"), dir_fd=self._nodes[node].handle)
        self._faults.vanish(self._nodes[node].identity(), body.rstrip(b"\0"))

    def _rename(self, node: int, body: bytes) -> None:
        [target] = struct.unpack_from("<Q", body)
        old, new = body[8:].split(b"\0")[:2]
        source, into = self._nodes[node], self._nodes[target]
        os.rename(old, new, src_dir_fd=source.handle, dst_dir_fd=into.handle)
        self._faults.vanish(source.identity(), old)
        self._faults.appear(into.identity(), new, self)

    def _link(self, node: int, body: bytes) -> bytes:
        [linked] = struct.unpack_from("<Q", body)
        name = body[8:].rstrip(b"\0")
        os.link(self._nodes[linked].path, name, dst_dir_fd=self._nodes[node].handle)
        return self._new(node, name)

    def _open_file(self, node: int, body: bytes) -> bytes:
        [flags] = struct.unpack_from("<I", body)
        path = self._nodes[node].path
        is_changed = flags & os.O_ACCMODE and not flags & os.O_TRUNC and os.stat(path).st_size
        if self._faults.sequential and is_changed:
            raise OSError(errno.EOPNOTSUPP, "changed")
        # The kernel says where each write goes, also one that appends.
        handle = os.open(path, flags & ~(os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
        return self._opened(_Open(handle))

    def _read(self, node: int, body: bytes) -> bytes:
        opened, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(self._open[opened].handle, size, offset)

    def _write(self, node: int, body: bytes) -> bytes:
        number, offset, size = struct.unpack_from("<QQI", body)
        opened = self._open[number]
        with opened.lock:
            if self._faults.sequential and offset != opened.written:
                raise OSError(errno.EOPNOTSUPP, "out of order")
            done = os.pwrite(opened.handle, body[40 : 40 + size], offset)
            opened.written = offset + done
        return struct.pack("<II", done, 0)

    def _statfs(self, node: int, body: bytes) -> bytes:
        found = os.statvfs(self._nodes[node].path)
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        sizes = (found.f_bsize, found.f_namemax, found.f_frsize)
        return struct.pack("<QQQQQIII28x", *counts, *sizes)

    def _release(self, node: int, body: bytes) -> None:
        [number] = struct.unpack_from("<Q", body)
        with self._lock:
            opened = self._open.pop(number)
        if opened.handle >= 0:
            os.close(opened.handle)

    def _fsync(self, node: int, body: bytes) -> None:
        [number] = struct.unpack_from("<Q", body)
        os.fsync(self._open[number].handle)

    def _flush(self, node: int, body: bytes) -> None:
        """A close: nothing is kept back."""

    def _open_folder(self, node: int, body: bytes) -> bytes:
        folder = self._nodes[node]
        names = self._faults.listed(folder.identity(), map(os.fsencode, os.listdir(folder.path)))
        return self._opened(_Open(entries=[b".", b"..", *sorted(names)]))

    def _list(self, node: int, body: bytes) -> bytes:
        number, offset, size = struct.unpack_from("<QQI", body)
        found = b""
        for index, name in enumerate(self._open[number].entries[offset:], offset + 1):
            entry = struct.pack("<QQII", 2**32 + index, index, len(name), 0) + name
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", body)
        name = body[16:].rstrip(b"\0")
        flags = self._faults.honoured(flags) & ~os.O_APPEND | os.O_CREAT
        handle = os.open(name, flags, stat.S_IMODE(mode), dir_fd=self._nodes[node].handle)
        return self._new(node, name) + self._opened(_Open(handle))


def main(backing: Path, hosts: list[Path]) -> None:
    """Serves the mounts until stdin ends; each line of it is new switches, each answer `ok`."""
    os.umask(0)
    faults = _Faults()
    try:
        for host in hosts:
            served = _Host(backing, _mount(host), faults)
            for _ in range(THREADS):
                threading.Thread(target=served.serve, daemon=True).start()
        print("ok", flush=True)
        for line in sys.stdin:
            faults.set(Switches(**json.loads(line)))
            print("ok", flush=True)
    finally:
        for host in hosts:
            _unmount(host)
        os._exit(0)  # closes the devices: what still waits for an answer gets an error


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(host) for host in sys.argv[2:]])
