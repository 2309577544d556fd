"""Where a worker process runs."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerSlot:
    """What a worker process has been given.

    Attributes:
        device: torch device that it owns, such as `cpu` or `cuda:0`.
        others: further devices that it owns, for a model that is split among several.
        cores: CPU cores for its threads.
        scores_later: whether it is likely to score rows later.
        on_host: replicas that share the host's memory, itself included; at least those known of.
    """

    device: str
    cores: int = 1
    scores_later: bool = True
    others: tuple[str, ...] = ()
    on_host: int = 1

    @property
    def device_name(self) -> str:
        """The device with the host's name, such as `cuda:0 on node7`."""
        return f"{self.device} on {socket.gethostname()}"
