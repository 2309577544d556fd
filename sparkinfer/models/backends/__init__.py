"""Backends: what makes a model run faster. To add one, add a file and a line in `BACKENDS`."""

from __future__ import annotations

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.models.backends.base import Acceleration, Backend
from sparkinfer.models.backends.deepspeed import DeepSpeedBackend
from sparkinfer.models.backends.onnxruntime import OnnxRuntimeBackend
from sparkinfer.models.backends.openvino import INT8, OpenVinoBackend, check_int8
from sparkinfer.models.backends.torch import TorchBackend
from sparkinfer.models.backends.torch_compile import TorchCompileBackend
from sparkinfer.models.backends.vllm import VllmBackend
from sparkinfer.models.options import ModelOptions

PLAIN = Acceleration("none", "float32")
"""How the reference is run, which every other way is compared with."""

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        TorchBackend(),
        DeepSpeedBackend(),
        OpenVinoBackend(),
        OnnxRuntimeBackend(),
        TorchCompileBackend(),
        VllmBackend(),
    )
}

AUTOMATIC = {
    "cpu": ("openvino", "none", "onnxruntime", "deepspeed"),
    "cuda": ("none", "deepspeed", "torch_compile"),
}
"""By kind of device, in the order in which `auto` prefers them. Those behind `none`, which always
works, are taken only where they are measured to be faster."""


def wanted_backends(acceleration: str, dtype: str, device: str) -> list[Backend]:
    """Returns those to try in a number format, preferred first, the plain one among them.

    Of `auto`, those that are installed. The plain one has no int8.
    """
    if dtype == INT8:
        return [BACKENDS[OpenVinoBackend.name]]
    names = AUTOMATIC[device.partition(":")[0]]
    wanted = [BACKENDS[name] for name in names if BACKENDS[name].problem() is None]
    if acceleration != "auto":
        wanted = [BACKENDS[acceleration]]
    return [*wanted, BACKENDS[PLAIN.backend]]


def warm_up(acceleration: str) -> None:
    """Imports what the way of running a model needs that is likely to be taken."""
    installed = [name for name in AUTOMATIC["cpu"] if BACKENDS[name].problem() is None]
    BACKENDS[installed[0] if acceleration == "auto" else acceleration].warm_up()


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


def check_options(options: ModelOptions) -> None:
    """Raises unless the backend that is asked for can do what is asked of it; see `Backend`.

    Raises:
        ConfigError: it does not do it, or there is no such backend.
        EngineUnavailableError: it, or a package that it needs, is not installed.
    """
    if options.dtype == INT8:
        check_int8(options)
    check_acceleration(options.acceleration)
    if options.acceleration != "auto":
        BACKENDS[options.acceleration].check(options)
