"""The backend `torch_compile`: the module, compiled by torch for this device."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from typing import Any

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.graphs import check_one_pass, is_one_pass
from sparkinfer.models.backends.torch import PipelineRuntime, runtime_of
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.options import ModelOptions


class TorchCompileBackend:
    """Runs the module that `torch.compile` makes, for batches of any shape.

    The first batches of a process take from seconds to minutes, since the compiler runs then.
    """

    name = "torch_compile"

    def problem(self) -> str | None:
        """Returns what is missing, None if nothing is.

        For CPUs torch writes C++, for GPUs Triton's language.
        """
        if shutil.which("g++") or shutil.which("clang++") or importlib.util.find_spec("triton"):
            return None
        return (
            "torch.compile needs a C++ compiler (g++) for CPUs or the package triton for GPUs; "
            "install one on every node, or use --acceleration auto"
        )

    def check(self, options: ModelOptions) -> None:
        """Raises ConfigError for other tasks, and models larger than one GPU; see `Backend`."""
        check_one_pass(self.name, options)

    def warm_up(self) -> None:
        """Imports the compiler."""
        importlib.import_module("torch._dynamo")

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        """Returns the one way, for models that one device holds and that take one forward pass."""
        return [Acceleration(self.name, dtype)] if is_one_pass(options) else []

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> PipelineRuntime:
        """Returns the pipeline around the compiled module."""
        pipe = checkpoint.pipeline(checkpoint.take_module(way.dtype))
        module: Any = pipe.model
        module.compile(dynamic=True)  # in place: its class and signature stay
        return runtime_of(pipe)
