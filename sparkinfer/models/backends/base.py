"""What a backend is: one way, or a few, to make a checkpoint run faster.

A backend is one file beside this one and one line in `BACKENDS`. Whether it may be used is not its
business but the gate's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks.base import Runtime


@dataclass(frozen=True)
class Acceleration:
    """One way to run a model.

    Attributes:
        backend: name in `BACKENDS`.
        dtype: number format of the weights.
        variant: tells ways of one backend apart, empty for its plain one.
    """

    backend: str
    dtype: str
    variant: str = ""

    def __str__(self) -> str:
        variant = f" with {self.variant}" if self.variant else ""
        return f"{self.backend}{variant} in {self.dtype}"


class Backend(Protocol):
    """What runs models.

    Attributes:
        name: as the user gives it.
    """

    name: str

    def problem(self) -> str | None:
        """Returns why it cannot be used in this process, None if it can; imports nothing."""

    def warm_up(self) -> None:
        """Imports what `load` needs, for a process that will call it later."""

    def ways(self, options: ModelOptions, dtype: str) -> list[Acceleration]:
        """Returns the ways in which it would run a model, the one to be tried first first."""

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> Runtime:
        """Returns the model, run that way; whatever it raises, the gate takes another way."""
