"""What a backend is: one or more ways to make a checkpoint run faster.

A backend is one file next to this one and one line in `BACKENDS`. Whether it may be used is decided
by the gate, not by the backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks.base import Runtime, TaskRuntime


@dataclass(frozen=True)
class Acceleration:
    """One way to run a model.

    Attributes:
        backend: name in `BACKENDS`.
        dtype: number format of the weights.
        variant: distinguishes ways of one backend, empty for its plain one.
        processes: that share the model, its layers split among them.
        offloads: whether the weights wait in the host's memory.
    """

    backend: str
    dtype: str
    variant: str = ""
    processes: int = 1
    offloads: bool = False

    def __str__(self) -> str:
        variant = f" with {self.variant}" if self.variant else ""
        split = f" over {self.processes} processes" if self.processes > 1 else ""
        offloaded = " with weights in the host's memory" if self.offloads else ""
        return f"{self.backend}{variant}{split}{offloaded} in {self.dtype}"

    @property
    def shown(self) -> str:
        """The same for people: `PyTorch in float32`."""
        return shown_way(str(self))

    @property
    def is_large(self) -> bool:
        """Whether it is for models that one GPU does not hold."""
        return self.processes > 1 or self.offloads


_TITLES = {
    "none": "PyTorch",
    "deepspeed": "DeepSpeed",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "torch_compile": "torch.compile",
    "vllm": "vLLM",
}
"""How backends are called outside of options; another one by its name."""


def shown_way(way: str) -> str:
    """Returns a way of running a model, as `str` of it says it, with the backend's usual name."""
    backend, space, how = way.partition(" ")
    return f"{_TITLES.get(backend, backend)}{space}{how}"


class Backend(Protocol):
    """What runs models.

    Attributes:
        name: value of the option `acceleration`.
    """

    name: str

    def problem(self) -> str | None:
        """Returns why the backend cannot be used in this process, None if it can.

        Imports nothing.
        """

    def check(self, options: ModelOptions) -> None:
        """Raises for options that it does not follow, where it is asked for by name.

        Raises:
            ConfigError: it does not do it.
            EngineUnavailableError: a package that this takes is missing.
        """

    def warm_up(self) -> None:
        """Imports what `load` needs, for a process that will call it later."""

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        """Returns the ways in which it could run a model, in the order in which to try them.

        Args:
            options: how the model is to be run.
            dtype: number format.
            device: torch device, such as `cpu` or `cuda:0`.
        """

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> Runtime | TaskRuntime:
        """Returns the model, run in this way; if it raises anything, the gate tries another way."""
