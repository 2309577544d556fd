"""A backend and a task that end or hang over some texts, as a crash in native code would.

Five times one word in a text make it happen: in the model with the backend, in the tokenizer with
the task. The gate has no such texts.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.tasks import TASKS
from sparkinfer.models.tasks.base import Head, ModelFiles, ModelTask, Tensors
from sparkinfer.models.tasks.text_classification import TextClassification
from sparkinfer.models.tokens import Encoder
from tests.tiny_models import SPECIAL_TOKENS, WORDS

TIMES = 5

DEADLY_WORD, HANGING_WORD, ONCE_WORD = "boring", "funny", "awful"

DEADLY = " ".join([DEADLY_WORD] * TIMES)
"""In a text, it kills."""

HANGING = " ".join([HANGING_WORD] * TIMES)
"""In a text, it hangs."""

DEADLY_ONCE = " ".join([ONCE_WORD] * TIMES)
"""In a text, it kills the first time: the text is innocent."""


def ends_of(model: Path) -> int:
    """Returns how often a process has been killed, or has hung, over the texts of a model."""
    folder = _marks(model)
    return len(list(folder.iterdir())) if folder.exists() else 0


def _marks(model: Path) -> Path:
    return model.with_name(f"{model.name}-ends")


def _act(model: Path, has: Callable[[str], bool]) -> None:
    """Does to this process what texts say; `has` tells whether one has a word often enough."""
    for word in (DEADLY_WORD, HANGING_WORD, ONCE_WORD):
        if has(word):
            _marks(model).mkdir(exist_ok=True)
            mark = _marks(model) / ("once" if word == ONCE_WORD else uuid.uuid4().hex)
            if mark.exists():
                continue
            mark.touch()
            if word == HANGING_WORD:
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGKILL)


class _DeadlyRuntime:
    def __init__(self, path: Path, module: Any) -> None:
        self._path = path
        self._module = module

    module = None

    def forward(self, tensors: Tensors, head: Head | None = None) -> Any:
        ids = tensors["input_ids"]

        def has(word: str) -> bool:
            token = len(SPECIAL_TOKENS) + WORDS.index(word)
            return bool(((ids == token).sum(dim=1) >= TIMES).any())

        _act(self._path, has)
        return {"logits": self._module(**tensors)["logits"]}


class DeadlyBackend:
    """See above."""

    name = "deadly"

    def problem(self) -> str | None:
        return None

    def check(self, options: ModelOptions) -> None:
        pass

    def warm_up(self) -> None:
        import torch  # noqa: F401

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        return [Acceleration(self.name, "float32", "deadly")]

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> _DeadlyRuntime:
        return _DeadlyRuntime(checkpoint.path, checkpoint.take_module())


class DeadlyTask(TextClassification):
    """See above."""

    name = "deadly-tokenizer"

    def of_model(self, files: ModelFiles) -> ModelTask:
        bound = super().of_model(files)
        bound.encode = partial(_encode, bound.encode)  # type: ignore[method-assign]
        return bound


def _encode(encode: Any, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
    path = Path(encoder.tokenizer.name_or_path)
    _act(path, lambda word: any(text.split().count(word) >= TIMES for text in columns[0]))
    return encode(encoder, columns)


class WithDeadlyBackend(ModelScoring):
    """Has a worker that unpickles it know the backend and the task."""


BACKENDS[DeadlyBackend.name] = DeadlyBackend()
TASKS[DeadlyTask.name] = DeadlyTask
