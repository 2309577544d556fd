"""A model that is ready: turns inputs into token ids, and padded batches into scored columns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.layout import Layout
from sparkinfer.models.tasks.base import Runtime, TaskRuntime, Tensors
from sparkinfer.workers.steps import step


class RunningModel:
    """A checkpoint as run by a backend for its task.

    Args:
        checkpoint: the model's files.
        runtime: what runs them.

    Attributes:
        task: what the model does.
        device: torch device.
        encoder: its tokenizer.
        runtime: as given.
        layout: how its batches are laid out.
        vocabulary: tokens that the model has, None if unknown; an id beyond them has no meaning.
        labels: names in the order of the probabilities; empty if the task has none.
        texts: where each of the task's texts comes from.
    """

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime | TaskRuntime) -> None:
        self.task = checkpoint.task
        self.device = checkpoint.device
        self.encoder = checkpoint.encoder
        self.runtime = runtime
        self.layout = checkpoint.layout
        self.vocabulary = checkpoint.vocabulary
        self.labels = self.task.labels
        self.texts = checkpoint.options.texts

    def in_layout(self, layout: Layout) -> RunningModel:
        """Returns the same model with batches laid out otherwise; it must have the same resets."""
        other = copy.copy(self)
        other.layout = layout
        other.encoder = self.encoder.padding(layout.padding_side, layout.pad_id)
        return other

    def encode(self, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the token ids of inputs, given as one column for each of the task's texts."""
        return self.task.encode(self.encoder, columns)

    def score(self, tensors: Tensors) -> pa.RecordBatch:
        """Returns what the task decodes of one padded batch, a row per sequence.

        Args:
            tensors: int64 (sequences, longest) by name.
        """
        return self.decode(self.run(tensors), tensors)

    def run(self, tensors: Tensors, moved: Callable[[], None] = lambda: None) -> Any:
        """Returns the model's output for one padded batch, for `decode`.

        Args:
            tensors: int64 (sequences, longest) by name.
            moved: see `TaskRuntime`.
        """
        import torch

        if isinstance(self.runtime, TaskRuntime):
            return self.runtime.score(tensors, moved)
        with torch.inference_mode():
            return self.task.run(self.runtime, tensors)

    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        """Returns what the task makes of an output, a row per sequence."""
        import torch

        if isinstance(self.runtime, TaskRuntime):
            decoded: pa.RecordBatch = output
            return decoded
        with torch.inference_mode():
            return self.task.decode(output, tensors)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights; 0 if the backend does not show them."""
        module = self.runtime.module
        if module is None:
            return 0
        tensors = [*module.parameters(), *module.buffers()]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    @property
    def own_batch_tokens(self) -> int | None:
        """Tokens of a batch for what runs the model in batches of its own; None: it does not."""
        return self.runtime.batch_tokens if isinstance(self.runtime, TaskRuntime) else None

    def move(self, device: str) -> None:
        """Moves the weights; does nothing if the backend does not show them."""
        if self.runtime.module is not None:
            self.runtime.module.to(device)

    def try_out(self, tensors: Tensors) -> pa.RecordBatch:
        """Returns the numbers by which ways of running the model are compared; see `ModelTask`."""
        import torch

        if isinstance(self.runtime, TaskRuntime):
            return self.runtime.try_out(tensors)
        with torch.inference_mode():
            return self.task.try_out(self.runtime, tensors)


def load_way(checkpoint: Checkpoint, way: Acceleration) -> RunningModel:
    """Returns the model, run in this way."""
    with step(f"loading the model with {way}"):
        return RunningModel(checkpoint, BACKENDS[way.backend].load(checkpoint, way))
