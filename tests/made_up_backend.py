"""A backend that the package does not have, made of this file and its last line: in float64."""

from __future__ import annotations

from typing import Any

from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.tasks.base import Head, Tensors


class _DoubleRuntime:
    def __init__(self, module: Any) -> None:
        self._module = module.double()

    module = None

    def forward(self, tensors: Tensors, head: Head | None = None) -> Any:
        return {"logits": self._module(**tensors)["logits"].float()}


class DoubleBackend:
    """Without transformers' pipeline: a backend need not have one."""

    name = "double"

    def problem(self) -> str | None:
        return None

    def check(self, options: ModelOptions) -> None:
        pass

    def warm_up(self) -> None:
        import torch  # noqa: F401

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        return [Acceleration(self.name, "float32", "double products")]

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> _DoubleRuntime:
        return _DoubleRuntime(checkpoint.take_module())


class WithMadeUpBackend(ModelScoring):
    """Has a worker that unpickles it know the backend, as it knows those of the package."""


BACKENDS[DoubleBackend.name] = DoubleBackend()
