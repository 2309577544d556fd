"""Backends: what makes a model run faster. To add one, add a file and a line in `BACKENDS`."""

from __future__ import annotations

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.models.backends.base import Acceleration, Backend
from sparkinfer.models.backends.deepspeed import DeepSpeedBackend
from sparkinfer.models.backends.torch import TorchBackend
from sparkinfer.models.backends.vllm import VllmBackend
from sparkinfer.models.options import ModelOptions

PLAIN = Acceleration("none", "float32")
"""How the reference is run, which every other way is compared with."""

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (DeepSpeedBackend(), TorchBackend(), VllmBackend())
}

AUTOMATIC = ("deepspeed", "none")
"""In the order in which `auto` tries them; the last one always works."""


def wanted_backends(acceleration: str) -> list[Backend]:
    """Returns the backend of that name; for `auto`, those that are installed."""
    if acceleration != "auto":
        return [BACKENDS[acceleration]]
    return [BACKENDS[name] for name in AUTOMATIC if BACKENDS[name].problem() is None]


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
    check_acceleration(options.acceleration)
    if options.acceleration != "auto":
        BACKENDS[options.acceleration].check(options)
