"""The backend `none`: the model as transformers loads it, cast to a number format."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint, quiet_transformers
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks.base import Head, Tensors
from sparkinfer.models.tokens import MODEL_INPUTS


class PipelineRuntime:
    """A transformers pipeline whose module is run on its device; the module may be wrapped.

    Args:
        pipe: the pipeline, or a `HeldModule` in place of one.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @property
    def module(self) -> Any:
        """The pipeline's module."""
        return self.pipe.model

    def forward(self, tensors: Tensors, head: Head | None = None) -> Mapping[str, Any]:
        """Returns the model's outputs by name; see `Runtime`.

        Source: `Pipeline.forward`, and `_forward` of the pipelines without a cache.
        """
        pipe = self.pipe
        with pipe.device_placement(), pipe.get_inference_context()():
            placed = {name: tensor.to(pipe.device) for name, tensor in tensors.items()}
            inputs = {name: placed[name] for name in MODEL_INPUTS if name in placed}
            outputs = _named(self.module(**inputs, **self._without_cache))
            wanted = outputs if head is None else head(outputs, placed)
            return {name: tensor.cpu() for name, tensor in wanted.items() if _is_tensor(tensor)}

    @cached_property
    def _without_cache(self) -> dict[str, bool]:
        takes = inspect.signature(self.module.forward).parameters
        return {"use_cache": False} if "use_cache" in takes else {}


def _named(outputs: Any) -> Mapping[str, Any]:
    """Returns outputs by name; of a tuple, the first is the one that tasks look for."""
    if isinstance(outputs, Mapping):
        return outputs
    return dict.fromkeys(("logits", "last_hidden_state"), outputs[0])


def _is_tensor(output: Any) -> bool:
    import torch

    return isinstance(output, torch.Tensor)


class TorchBackend:
    """Runs the plain module."""

    name = "none"

    def problem(self) -> str | None:
        """Returns None: every installation has it."""
        return None

    def check(self, options: ModelOptions) -> None:
        """Raises ConfigError for models larger than one GPU; see `Backend`."""
        if options.parallel.is_asked:
            raise ConfigError(
                f"{options.parallel.shown} with acceleration='none': transformers alone has no "
                "part in that; use acceleration='deepspeed' or leave it out"
            )

    def warm_up(self) -> None:
        """Imports transformers' pipelines."""
        quiet_transformers()
        importlib.import_module("transformers.pipelines")

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        """Returns the one way, for models that one device holds."""
        return [] if options.parallel.is_asked else [Acceleration(self.name, dtype)]

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> PipelineRuntime:
        """Returns the pipeline around the module in the way's number format."""
        if way.dtype == "float32":
            return PipelineRuntime(checkpoint.pipeline(checkpoint.module()))
        return PipelineRuntime(checkpoint.pipeline(checkpoint.take_module(way.dtype)))
