"""Which device a worker process owns.

A GPU that was not assigned by Spark is held through a lock file on its host until the process ends,
so that two workers never load a model on the same one.
"""

from __future__ import annotations

import gc
import os
import re
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkinfer.exceptions import EngineUnavailableError

if TYPE_CHECKING:
    from filelock import FileLock


def worker_device(kind: str, address: str | None, local_rank: int) -> str:
    """Returns the torch device of a rank: the GPU assigned by Spark, else that of its local rank.

    A GPU that Spark has not assigned is held through a lock: a launcher that counts local ranks by
    container and not by host gives several ranks the same one, and the others then take the next.

    Args:
        kind: `cuda` or `cpu`, as in `Workers.device_type`.
        address: the GPU that Spark assigned to the rank's task, None if it schedules no GPUs.
        local_rank: the rank among those on its host.

    Raises:
        EngineUnavailableError: torch does not see that GPU, or all of them are taken.
    """
    if kind == "cpu":
        return "cpu"
    visible = _visible_devices(os.environ)
    index = _lock_free_gpu(visible, local_rank) if address is None else gpu_index(address, visible)
    count = count_cuda_devices()
    if index >= count:
        raise EngineUnavailableError(
            f"host {socket.gethostname()}: the task owns GPU {address or index}, but torch sees "
            f"{count} CUDA devices there (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES')!r}); install a CUDA build of torch and a "
            "working driver, or use device='cpu'"
        )
    return f"cuda:{index}"


def release_memory(device: str) -> None:
    """Releases cached memory of freed models and batches on a device."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def release_gpus() -> None:
    """Releases the GPUs that this process holds for its tasks."""
    while _held:
        _held.popitem()[1].release()


def has_nvidia_driver() -> bool:
    """Returns whether an NVIDIA driver is loaded on this host; uses no library."""
    if Path("/proc/driver/nvidia/gpus").exists() or Path("/dev/dxg").exists():  # Linux, WSL
        return True
    return any(Path("/dev").glob("nvidia[0-9]*"))


def count_cuda_devices() -> int:
    """Returns the number of CUDA devices that torch sees here."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _visible_devices(environment: Mapping[str, str]) -> list[str]:
    """Returns the entries of CUDA_VISIBLE_DEVICES; empty if it is not set."""
    text = environment.get("CUDA_VISIBLE_DEVICES", "")
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def gpu_index(address: str, visible: list[str]) -> int:
    """Returns torch's index for a GPU address.

    A number indexes into CUDA_VISIBLE_DEVICES if that is set, for both torch and Spark.

    Args:
        address: what Spark reports, a number or `GPU-<uuid>`.
        visible: the entries of CUDA_VISIBLE_DEVICES.

    Raises:
        EngineUnavailableError: an address that is not a number is not among the visible devices.
    """
    if address.isdecimal():
        return int(address)
    if address in visible:
        return visible.index(address)
    raise EngineUnavailableError(
        f"host {socket.gethostname()}: GPU address {address!r} is not in CUDA_VISIBLE_DEVICES="
        f"{','.join(visible)!r}; let the discovery script report indices, or set that variable for "
        "the executors"
    )


# A lock is released when its object is garbage-collected: these live as long as the process.
_held: dict[int, FileLock] = {}


def _lock_free_gpu(visible: list[str], first: int) -> int:
    """Locks a GPU that no other process on this host holds, and returns its index.

    Args:
        visible: the entries of CUDA_VISIBLE_DEVICES.
        first: the index to try first.
    """
    if _held:
        return next(iter(_held))
    count = count_cuda_devices()
    for index in range(count):
        index = (first + index) % count
        name = visible[index] if index < len(visible) else str(index)
        lock = _try_lock(name)
        if lock is not None:
            _held[index] = lock
            return index
    if count == 0:
        return 0  # the caller rejects it, naming what torch sees
    raise EngineUnavailableError(
        f"host {socket.gethostname()}: more tasks load a model than there are GPUs ({count}), and "
        f"all of them are held by other processes; set spark.executor.resource.gpu.amount "
        "and spark.task.resource.gpu.amount=1, or use fewer workers"
    )


def _try_lock(gpu: str) -> Any:
    """Returns a held lock on the GPU's file in the temporary folder, or None if it is taken."""
    from filelock import FileLock, Timeout

    # One file per user: another user's could not be opened for writing.
    file = f"sparkinfer-{os.getuid()}-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}.lock"
    lock = FileLock(Path(tempfile.gettempdir()) / file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
