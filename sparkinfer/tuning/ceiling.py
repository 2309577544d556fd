"""What a device's matrix products allow, and what a model's take."""

from __future__ import annotations

import time
from typing import Any

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices, by kind of device."""

MEASURED_S = 0.2

WITHOUT_CEILING = ("int8",)
"""Formats whose products torch does not compute by the device's own instructions."""


class Ceiling:
    """The rates of a device, by number format; the highest that was seen counts.

    Other programs take a part of the device for a while: so it is looked at more than once.

    Args:
        device: torch device.
        flops_of_token: that the model's weights take; None: its share is not known.
    """

    def __init__(self, device: str, flops_of_token: int | None) -> None:
        self._device = device
        self._flops_of_token = flops_of_token
        self._highest: dict[str, float] = {}

    def look(self, dtype: str) -> None:
        """Measures the rate for a number format."""
        if self._flops_of_token is not None and dtype not in WITHOUT_CEILING:
            found = measured_flops(self._device, dtype)
            self._highest[dtype] = max(found, self._highest.get(dtype, 0.0))

    def share(self, tokens_per_s: float, dtype: str) -> float | None:
        """Returns the share of it that the model's products make up, None if it is not known."""
        highest = self._highest.get(dtype)
        return None if highest is None else self.share_of(highest, tokens_per_s)

    def share_of(self, flops: float, tokens_per_s: float) -> float | None:
        """Returns the same of another rate."""
        of_token = self._flops_of_token
        return None if of_token is None else of_token * tokens_per_s / flops


def measured_flops(device: str, dtype: str) -> float:
    """Returns the most floating-point operations per second that products of matrices reached.

    Args:
        device: torch device; on a CPU the threads of this process count.
        dtype: number format of the matrices.
    """
    import torch

    side = SIDE["cuda" if device.startswith("cuda") else "cpu"]
    left, right = (
        torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2)
    )
    torch.matmul(left, right)  # what is made on first use is made now
    best, started = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - started < MEASURED_S:
        best = min(best, _seconds(left, right))
    return 2 * side**3 / best


def _seconds(left: Any, right: Any) -> float:
    import torch

    _await(left)
    started = time.perf_counter()
    torch.matmul(left, right)
    _await(left)
    return time.perf_counter() - started


def _await(tensor: Any) -> None:
    import torch

    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def flops_of_token(module: Any) -> int:
    """Returns the floating-point operations that a module's weights take for one token.

    Two for each weight but those of embeddings, which are looked up; attention's are not counted.
    """
    import torch

    tables = {
        id(weight)
        for part in module.modules()
        if isinstance(part, torch.nn.Embedding)
        for weight in part.parameters(recurse=False)
    }
    return 2 * sum(int(one.numel()) for one in module.parameters() if id(one) not in tables)
