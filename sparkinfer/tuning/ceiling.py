"""What a device's matrix products allow, and what a model's take."""

from __future__ import annotations

import time
from typing import Any

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices, by kind of device."""

MEASURED_S = 0.2


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
