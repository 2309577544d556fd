"""The backend `none`: the model as transformers loads it, cast to a number format."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint, quiet_transformers
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks.base import Head, Runtime, Tensors
from sparkinfer.models.tokens import MODEL_INPUTS
from sparkinfer.workers.pinned import pinned, pinned_copy


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
        outputs = self.outputs_on_device(tensors, head)
        return {name: tensor.cpu() for name, tensor in outputs.items()}

    def outputs_on_device(self, tensors: Tensors, head: Head | None = None) -> Mapping[str, Any]:
        """Returns the same where the model has made it."""
        pipe = self.pipe
        with pipe.device_placement(), pipe.get_inference_context()():
            # Without waiting, where a GPU takes them from memory that is pinned.
            placed = {name: one.to(pipe.device, non_blocking=True) for name, one in tensors.items()}
            inputs = {name: placed[name] for name in MODEL_INPUTS if name in placed}
            outputs = _named(self.module(**inputs, **self._without_cache))
            wanted = outputs if head is None else head(outputs, placed)
            return {name: tensor for name, tensor in wanted.items() if _is_tensor(tensor)}

    @cached_property
    def _without_cache(self) -> dict[str, bool]:
        takes = inspect.signature(self.module.forward).parameters
        return {"use_cache": False} if "use_cache" in takes else {}


class CudaRuntime(PipelineRuntime):
    """The same on a GPU, which works while the host goes on; an `AsynchronousRuntime`."""

    @cached_property
    def launching(self) -> Runtime:
        """The same, whose outputs are still on the GPU; see `AsynchronousRuntime`."""
        return _Launching(self)

    def forward(self, tensors: Tensors, head: Head | None = None) -> Mapping[str, Any]:
        """Returns the model's outputs by name, having waited once for all; see `Runtime`."""
        found: Mapping[str, Any] = self.copied(self.outputs_on_device(tensors, head))()
        return found

    def staged(self, tensors: Tensors) -> Tensors:
        """Returns a batch in pinned memory; see `AsynchronousRuntime`."""
        import torch

        try:
            with torch.cuda.device(self.pipe.device):  # the thread that asks may have chosen none
                return {name: pinned(tensor) for name, tensor in tensors.items()}
        except RuntimeError:  # what is wrong shows in the model
            return tensors

    def copied(self, output: Any) -> Callable[[], Any]:
        """Returns what waits for a copy, which is made before what is launched next."""
        import torch

        copy = pinned_copy(output)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.pipe.device))

        def wait() -> Any:
            event.synchronize()
            return copy

        return wait


class _Launching:
    """A runtime on a GPU, without the wait for its outputs."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self.module = runtime.module
        self.forward = runtime.outputs_on_device


def runtime_of(pipe: Any) -> PipelineRuntime:
    """Returns what runs a pipeline, or what is held in place of one, on its device."""
    return (CudaRuntime if pipe.device.type == "cuda" else PipelineRuntime)(pipe)


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
            return runtime_of(checkpoint.pipeline(checkpoint.module()))
        return runtime_of(checkpoint.pipeline(checkpoint.take_module(way.dtype)))
