"""The backend `none`: the model as transformers loads it, cast to a number format."""

from __future__ import annotations

import importlib
from typing import Any

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint, quiet_transformers
from sparkinfer.models.options import ModelOptions


class PipelineRuntime:
    """A transformers pipeline whose forward pass is used; its module may be wrapped.

    Args:
        pipe: the pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def forward(self, tensors: dict[str, Any]) -> Any:
        """Returns the model's outputs by name; see `Runtime`."""
        return self.pipe.forward(tensors)


class TorchBackend:
    """Runs the plain module."""

    name = "none"

    def problem(self) -> str | None:
        """Returns None: every installation has it."""
        return None

    def warm_up(self) -> None:
        """Imports transformers' pipelines."""
        quiet_transformers()
        importlib.import_module("transformers.pipelines")

    def ways(self, options: ModelOptions, dtype: str) -> list[Acceleration]:
        """Returns the one way."""
        return [Acceleration(self.name, dtype)]

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> PipelineRuntime:
        """Returns the pipeline around the module in the way's number format."""
        import torch

        if way.dtype == "float32":
            return PipelineRuntime(checkpoint.pipeline(checkpoint.module()))
        module = checkpoint.take_module()
        return PipelineRuntime(checkpoint.pipeline(module.to(getattr(torch, way.dtype))))
