"""Holds a module on its device where the installed transformers has no pipeline that would."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any


class HeldModule:
    """A module on its device, with what backends use of a transformers pipeline.

    Args:
        module: a torch module.
        device: torch device to which it is moved.

    Attributes:
        model: the module; a backend may put a wrapper in its place.
        device: as given.

    Source: `Pipeline` of transformers, whose attributes have these names.
    """

    def __init__(self, module: Any, device: Any) -> None:
        self.model = module.to(device)
        self.device = device

    def device_placement(self) -> AbstractContextManager[None]:
        """Returns a context in which tensors are made on the device."""
        import torch

        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def get_inference_context(self) -> Callable[[], AbstractContextManager[None]]:
        """Returns what makes a context without gradients."""
        import torch

        made: Callable[[], AbstractContextManager[None]] = torch.no_grad
        return made
