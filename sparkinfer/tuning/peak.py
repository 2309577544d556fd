"""How much memory this process, or its device, takes for a while."""

from __future__ import annotations

from pathlib import Path

from sparkinfer.workers.devices import release_memory
from sparkinfer.workers.heap import trim


class Peak:
    """Counts from when it is made; what is loaded and freed before `settle` does not count.

    Args:
        device: torch device; of a CPU it is the process's resident memory.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._is_on_gpu = device.startswith("cuda")
        _let_go(device)
        self._before = self._now()

    def settle(self) -> None:
        """Forgets how much it was meanwhile."""
        _let_go(self._device)
        if self._is_on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset()

    def grown(self) -> int | None:
        """Returns the most bytes since `settle` beyond those at the start; None: not known."""
        if self._is_on_gpu:
            import torch

            most: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            most = _status("VmHWM")
        return None if most is None or self._before is None else max(0, most - self._before)

    def _now(self) -> int | None:
        if not self._is_on_gpu:
            return _status("VmRSS")
        import torch

        allocated: int = torch.cuda.memory_allocated(self._device)
        return allocated


def _let_go(device: str) -> None:
    release_memory(device)
    trim()


def _reset() -> None:
    """Has the kernel start counting the process's peak again.

    Source: proc(5), /proc/pid/clear_refs. Where it cannot be written, the peak is an older one.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _status(name: str) -> int | None:
    """Returns a figure of /proc/self/status in bytes, None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith(f"{name}:"))
    return next((int(words[1]) * 1024 for words in found), None)
