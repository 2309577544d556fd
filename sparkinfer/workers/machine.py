"""What the host of this process is, for people."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from typing import Any

from sparkinfer.workers.devices import cpu_model
from sparkinfer.workers.slot import WorkerSlot


def machine(slot: WorkerSlot) -> dict[str, Any]:
    """Returns what a worker's host is, as JSON values.

    Its `name`, `cores`, `memory_bytes`, `cpu` and, by torch's name for each, its `gpus`: those of
    the worker, if it has used them by now.
    """
    return {**_host(), "gpus": {one: _gpu(one) for one in _used(slot)}}


@cache
def _host() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "name": socket.gethostname(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": memory,
        "cpu": cpu_model(),
    }


def _used(slot: WorkerSlot) -> list[str]:
    torch = sys.modules.get("torch")  # not imported for this
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [one for one in (slot.device, *slot.others) if one.startswith("cuda")]


def _gpu(device: str) -> str:
    import torch

    return str(torch.cuda.get_device_name(torch.device(device)))
