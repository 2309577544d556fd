"""Backends: what makes a model run faster. To add one, add a file and a line in `BACKENDS`."""

from __future__ import annotations

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.models.backends.base import Acceleration, Backend
from sparkinfer.models.backends.deepspeed import DeepSpeedBackend
from sparkinfer.models.backends.torch import TorchBackend

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
