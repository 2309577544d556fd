"""Which device a worker process owns."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparkinfer.exceptions import EngineUnavailableError
from sparkinfer.logs import get_logger
from sparkinfer.workers import gpus

logger = get_logger(__name__)


@contextlib.contextmanager
def worker_device(kind: str, address: str | None, local_rank: int) -> Iterator[str]:
    """Yields the torch device of this process, for the length of one task; see `gpus`.

    Args:
        kind: `cuda` or `cpu`, as in `Workers.device_type`.
        address: the GPU that Spark assigned to the task, None if it schedules no GPUs.
        local_rank: the task among those on its host, if it schedules none. A launcher that counts
            by container and not by host gives several the same one; the others take the next GPU.

    Raises:
        EngineUnavailableError: torch does not see that GPU, or all of them are taken.
    """
    with gpus.at_work():
        yield "cpu" if kind == "cpu" else f"cuda:{_own_gpu(address, local_rank)}"


@contextlib.contextmanager
def worker_gpus(addresses: Sequence[str], each: int) -> Iterator[tuple[str, ...]]:
    """Yields the torch devices of a process with several GPUs, for the length of one task.

    Args:
        addresses: the GPUs that Spark assigned to the task, none if it schedules no GPUs. They are
            taken as they are; otherwise the GPUs of a host are held in groups, one after the other.
        each: GPUs of the process.

    Raises:
        EngineUnavailableError: torch does not see them, or all of them are taken.
    """
    visible = _visible_devices(os.environ)
    given = [gpu_index(address, visible) for address in addresses[:each]]
    count = count_cuda_devices()
    if max(given, default=0) >= count or count < each or 0 < len(given) < each:
        raise EngineUnavailableError(
            f"host {socket.gethostname()}: a replica takes {each} GPUs (parallel.tensor), the task "
            f"owns {len(addresses) or 'all'} and torch sees {count} CUDA devices there; set "
            f"spark.task.resource.gpu.amount={each}, or lower parallel.tensor"
        )
    with gpus.at_work():
        yield tuple(f"cuda:{index}" for index in given or _own_group(visible, count, each))


def _own_group(visible: Sequence[str], count: int, each: int) -> range:
    groups = [range(start, start + each) for start in range(0, count - each + 1, each)]
    names = ["+".join(_names(visible, count)[group.start : group.stop]) for group in groups]
    held = gpus.hold_gpu(names, None)
    if held is None:
        raise EngineUnavailableError(
            f"host {socket.gethostname()}: more tasks load a model than there are groups of {each} "
            f"GPUs ({len(groups)}); set spark.executor.resource.gpu.amount and "
            f"spark.task.resource.gpu.amount={each}, or use fewer workers"
        )
    return groups[held]


def _names(visible: Sequence[str], count: int) -> list[str]:
    return [visible[index] if index < len(visible) else str(index) for index in range(count)]


def _own_gpu(address: str | None, local_rank: int) -> int:
    visible = _visible_devices(os.environ)
    given = None if address is None else gpu_index(address, visible)
    count = count_cuda_devices()
    if (given or 0) >= count:
        raise EngineUnavailableError(
            f"host {socket.gethostname()}: the task owns GPU {address or 0}, but torch sees "
            f"{count} CUDA devices there (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES')!r}); install a CUDA build of torch and a "
            "working driver, or use device='cpu'"
        )
    index = gpus.hold_gpu(_names(visible, count), given, local_rank)
    if index is not None:
        return index
    if given is not None:
        # Held by a stranger who was given the same address, such as one in a container with GPU
        # numbers of its own and a shared temporary folder. Spark knows better than the locks.
        logger.warning("GPU %s is held by another process, though Spark assigned it here", address)
        return given
    raise EngineUnavailableError(
        f"host {socket.gethostname()}: more tasks load a model than there are GPUs ({count}), and "
        f"all of them are held by other processes; set spark.executor.resource.gpu.amount "
        "and spark.task.resource.gpu.amount=1, or use fewer workers"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether a model raised this for lack of memory."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def breaks_device(error: Exception) -> bool:
    """Returns whether every later call of this process to its GPU would fail too."""
    return isinstance(error, RuntimeError) and _BROKEN.search(str(error)) is not None


_BROKEN = re.compile(
    r"(CUDA|HIP|NCCL|RCCL) error"
    r"|CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED|MAPPING_ERROR)"
    r"|CUBLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED|MAPPING_ERROR)"
    r"|device-side assert|illegal memory access|unspecified launch failure"
)
"""What libraries say of a broken device. One that does not support something is not broken.
Source: the error macros of torch (`C10_CUDA_CHECK`, `AT_CUDNN_CHECK`, `TORCH_CUDABLAS_CHECK`) and
the states that the manuals of cuDNN and cuBLAS call fatal."""


def release_memory(device: str) -> None:
    """Releases cached memory of freed models and batches on a device."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def free_memory(device: str) -> int | None:
    """Returns the bytes of memory that a device has free; None for a CPU, whose is the host's."""
    if not device.startswith("cuda"):
        return None
    import torch

    free: int = torch.cuda.mem_get_info(torch.device(device))[0]
    return free


def device_model(device: str) -> str:
    """Returns what a device is, so far as that decides what runs fast on it, or at all."""
    if device.startswith("cuda"):
        import torch

        major, minor = torch.cuda.get_device_capability(torch.device(device))
        name = torch.cuda.get_device_name(torch.device(device))
        return f"{name}, compute capability {major}.{minor}"
    about = _cpu_info()
    known = sorted(_CPU_FLAGS & set(about.get("flags", about.get("Features", "")).split()))
    return " ".join([cpu_model(), *known])


def cpu_model() -> str:
    """Returns what the host's processor calls itself."""
    return _cpu_info().get("model name", platform.machine())


_CPU_FLAGS = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16", "i8mm"}
)
"""Of /proc/cpuinfo: what products of matrices are made with."""


def _cpu_info() -> dict[str, str]:
    """Returns what the host tells of its first core, by name; nothing where it does not tell."""
    try:
        first, *_ = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def native_dtypes(device: str) -> list[str]:
    """Returns the number formats that a device computes fast in hardware, the fastest first.

    What float16 cannot hold, bfloat16 may: its numbers reach as far as those of float32.
    """
    if device.startswith("cuda"):
        return ["float16", "bfloat16"] if _has_bfloat16(device) else ["float16"]
    has_bfloat16 = {"avx512_bf16", "amx_bf16"} & set(device_model(device).split())
    return ["bfloat16", "float32"] if has_bfloat16 else ["float32"]


def _has_bfloat16(device: str) -> bool:
    import torch

    return bool(torch.cuda.get_device_capability(torch.device(device)) >= (8, 0))


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


def as_visible(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the setting by which another process sees this GPU alone; none for a CPU.

    Args:
        device: torch device of this process.
        environment: of this process.
    """
    if not device.startswith("cuda"):
        return {}
    index, visible = int(device.partition(":")[2] or 0), _visible_devices(environment)
    return {"CUDA_VISIBLE_DEVICES": visible[index] if index < len(visible) else str(index)}


def make_current(device: str) -> None:
    """Makes a GPU the one that torch takes where none is named; nothing for a CPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.set_device(device)


def use_gpu(device: Any) -> None:
    """Makes a GPU the one of this process for a model, whose attention cuDNN leaves alone.

    It makes a new plan of attention for every shape of a batch: on an H200 some 30 ms, where the
    whole forward pass of a BERT-base took 10 and was no slower with the other kernels.

    Args:
        device: torch device.
    """
    import torch

    torch.cuda.set_device(device)
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):  # torch 2.5
        torch.backends.cuda.enable_cudnn_sdp(False)


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
