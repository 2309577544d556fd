"""How many workers of an application may be at work on one host at the same time, by lock files.

For work that takes more than the core of its task where the cluster's scheduler does not know that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

POLL_S = 0.05


@dataclass(frozen=True)
class HostSlots:
    """What one worker takes of its host.

    Attributes:
        num_cpus: cores that it needs; None: no more than its task has.
        name: of the application, whose workers share the host's cores.
        cores: that the application has on each host, by the host's name or address; of others,
            as many as the machine has.
    """

    num_cpus: float | None = None
    name: str = "sparkinfer"
    cores: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int | None:
        """How many may be at work on this host, at least one; None: there is no limit."""
        if self.num_cpus is None or self.num_cpus <= 1:
            return None
        return max(1, int(self._cores_here() / self.num_cpus))

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Holds one of them while the context is open, after waiting for it."""
        count = self.count
        if count is None:
            yield
            return
        lock = self._any_free(count)
        try:
            yield
        finally:
            lock.release()

    def _any_free(self, count: int) -> FileLock:
        """Returns a lock that is held; it ends with this process, whatever ends that."""
        locks = [FileLock(self._path(number)) for number in range(count)]
        while True:
            for lock in locks:
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                return lock
            time.sleep(POLL_S)

    def _path(self, number: int) -> Path:
        # One file per user: another user's could not be opened for writing.
        name = f"sparkinfer-{os.getuid()}-{self.name}-{self.num_cpus:g}-{number}.lock"
        return Path(tempfile.gettempdir()) / name

    def _cores_here(self) -> int:
        names = {socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):
            names.update(socket.gethostbyname_ex(socket.gethostname())[2])
        known = [self.cores[name] for name in names if name in self.cores]
        return known[0] if known else min(self.cores.values(), default=os.cpu_count() or 1)
