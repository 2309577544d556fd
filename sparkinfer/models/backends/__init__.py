"""Backends: what makes a model run faster. To add one, add a file and a line in `BACKENDS`."""

from __future__ import annotations

from importlib.util import find_spec

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.models.backends.base import Acceleration, Backend
from sparkinfer.models.backends.deepspeed import DeepSpeedBackend
from sparkinfer.models.backends.torch import TorchBackend
from sparkinfer.option_groups import DeepSpeedConfig, ParallelConfig

PLAIN = Acceleration("none", "float32")
"""How the reference is run, which every other way is compared with."""

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (DeepSpeedBackend(), TorchBackend())
}
"""In the order in which `auto` tries them; the last one always works."""


def wanted_backends(acceleration: str) -> list[Backend]:
    """Returns the backend of that name; for `auto`, those that are installed."""
    if acceleration != "auto":
        return [BACKENDS[acceleration]]
    return [backend for backend in BACKENDS.values() if backend.problem() is None]


def check_acceleration(acceleration: str) -> None:
    """Raises unless there is a backend of this name and it is installed here.

    Raises:
        ConfigError: there is no backend of this name.
        EngineUnavailableError: it is not installed.
    """
    if acceleration == "auto":
        return
    if acceleration not in BACKENDS:
        expected = ", ".join(["auto", *BACKENDS])
        raise ConfigError(f"acceleration={acceleration!r}: expected one of {expected}")
    problem = BACKENDS[acceleration].problem()
    if problem is not None:
        raise EngineUnavailableError(f"acceleration={acceleration!r}: {problem}")


def check_parallel(parallel: ParallelConfig, acceleration: str, deepspeed: DeepSpeedConfig) -> None:
    """Raises unless a model can be run as is asked for models larger than one GPU.

    Raises:
        ConfigError: options contradict each other.
        EngineUnavailableError: a package is missing.
    """
    tensor, offloads = f"parallel.tensor={parallel.tensor}", parallel.offload == "cpu"
    if offloads and parallel.tensor > 1:
        raise ConfigError(
            f"parallel.offload=cpu with {tensor}: one keeps the weights in the host's memory, the "
            "other on several GPUs; drop one of them"
        )
    if not parallel.is_asked:
        return
    asked = "parallel.offload=cpu" if offloads else tensor
    if acceleration == "none":
        raise ConfigError(
            f"{asked} with acceleration='none': transformers alone has no part in that; use "
            "acceleration='deepspeed' or leave it out"
        )
    if deepspeed.kernel_inject:
        raise ConfigError(
            f"{asked} with deepspeed.kernel_inject=true: DeepSpeed's own kernels are for models on "
            "one GPU; drop one of them"
        )
    if offloads and find_spec("accelerate") is None:
        raise EngineUnavailableError(
            f"{asked}: the package accelerate is not installed, by which transformers reads "
            "DeepSpeed's settings; run pip install accelerate on every node"
        )
