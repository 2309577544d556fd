"""A model that is ready: turns inputs into token ids, and padded batches into scored columns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.models.backends import BACKENDS
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.encoded import Encoded, Inputs
from sparkinfer.models.layout import Layout
from sparkinfer.models.tasks.base import AsynchronousRuntime, Runtime, TaskRuntime, Tensors
from sparkinfer.models.tokens import Encoder
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
        self.runtime = runtime
        self.layout = checkpoint.layout
        self.encoder = self._padding(checkpoint.encoder, self.layout)
        self._asynchronous: AsynchronousRuntime | None = None
        # A task that makes tokens waits for the device at each of them.
        if isinstance(runtime, AsynchronousRuntime) and not self.task.made_tokens:
            self._asynchronous = runtime
        self.vocabulary = checkpoint.vocabulary
        self.labels = self.task.labels
        self.texts = checkpoint.options.texts

    def in_layout(self, layout: Layout) -> RunningModel:
        """Returns the same model with batches laid out otherwise; it must have the same resets."""
        other = copy.copy(self)
        other.layout = layout
        other.encoder = self._padding(self.encoder, layout)
        return other

    def _padding(self, encoder: Encoder, layout: Layout) -> Encoder:
        makes_own_batches = self.own_batch_tokens is not None
        multiple = 1 if makes_own_batches else layout.pad_to_multiple_of
        return encoder.padding(layout.padding_side, layout.pad_id, multiple)

    def encode(self, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the token ids of inputs, given as one column for each of the task's texts."""
        return self.task.encode(self.encoder, columns)

    def collate(self, encoded: Encoded, sequences: npt.NDArray[np.int64]) -> Tensors:
        """Returns sequences as one padded batch, where the device takes it from; see `Encoder`."""
        tensors = self.encoder.collate(encoded, sequences)
        return tensors if self._asynchronous is None else self._asynchronous.staged(tensors)

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

    @property
    def overlaps(self) -> bool:
        """Whether a batch can be launched while the one before it is under way."""
        return self._asynchronous is not None

    def launch(self, tensors: Tensors) -> Callable[[], Any]:
        """Begins with one padded batch; returns what waits for the model's output, for `decode`.

        Args:
            tensors: see `run`.
        """
        import torch

        if self._asynchronous is None:
            raise AssertionError("only where batches overlap is one launched")
        with torch.inference_mode():
            output = self.task.run(self._asynchronous.launching, tensors)
            return self._asynchronous.copied(output)

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
