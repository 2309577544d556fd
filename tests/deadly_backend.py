"""A backend whose model kills its process over some texts, as a crash in native code would."""

from __future__ import annotations

import os
import signal
from typing import Any

from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from tests.tiny_models import WORDS

DEADLY_WORD = "boring"
DEADLY = " ".join([DEADLY_WORD] * 5)
"""In a text, it kills; the gate has no such text."""


class _DeadlyRuntime:
    def __init__(self, module: Any) -> None:
        self._module = module
        self._token = 5 + WORDS.index(DEADLY_WORD)  # behind the special tokens

    def forward(self, tensors: dict[str, Any]) -> Any:
        if ((tensors["input_ids"] == self._token).sum(dim=1) >= 5).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"logits": self._module(**tensors)["logits"]}


class DeadlyBackend:
    """See above."""

    name = "deadly"

    def problem(self) -> str | None:
        return None

    def warm_up(self) -> None:
        import torch  # noqa: F401

    def ways(self, options: ModelOptions, dtype: str) -> list[Acceleration]:
        return [Acceleration(self.name, "float32", "deadly")]

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> _DeadlyRuntime:
        return _DeadlyRuntime(checkpoint.take_module())


class WithDeadlyBackend(ModelScoring):
    """Has a worker that unpickles it know the backend."""


BACKENDS[DeadlyBackend.name] = DeadlyBackend()
