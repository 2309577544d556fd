"""What a task is: which columns a model reads and adds, and how one becomes the other.

A task is one file beside this one and one line in `TASKS`. Its numbers are those of the Hugging
Face pipeline of its name, computed for a whole batch at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.metrics.base import Evaluation
from sparkinfer.models.tokens import Encoder, Inputs

ROW_FIELDS = (
    pa.field("n_tokens", pa.int32()),
    pa.field("truncated", pa.bool_()),
    pa.field("error", pa.string()),
)
"""What every task says of a row: tokens fed to the model, whether the text was cut, and why it
has no result (null where it has one)."""

METADATA_KEY = "sparkinfer"
"""Under it, a scored column's metadata holds its model's fingerprint and its labels in order."""

Tensors = Mapping[str, Any]
"""The padded tensors of a batch by name, int64 (sequences, longest): the model's inputs, and what
else the task's `encode` keeps for `decode`."""

Decoder = Callable[[Any, Tensors], pa.RecordBatch]
"""From what `run` returned for a batch, and its tensors, to one row per sequence in the order of
the batch; a row whose output is not finite is null."""


class Runtime(Protocol):
    """A model that a backend has made ready to run."""

    def forward(self, tensors: dict[str, Any]) -> Any:
        """Returns the model's outputs by name, as tensors on the CPU, for one padded batch."""


class Task(Protocol):
    """What a model does, by its Hugging Face name.

    Attributes:
        name: as the user gives it.
        pipeline: name of the transformers pipeline that runs such models.
        auto_class: name of the class of transformers that loads them.
        fields: columns that it adds to a row, beside `ROW_FIELDS`.
        evaluation: what its results are measured by; None: by nothing.
    """

    name: str
    pipeline: str
    auto_class: str
    fields: tuple[pa.Field, ...]
    evaluation: Evaluation | None

    def inputs(self, config: ScoringConfig) -> tuple[str, ...]:
        """Returns the columns that a configuration has it read, in the order of `encode`."""

    def labels(self, model_config: Any) -> tuple[str, ...]:
        """Returns the label names in the order of the probabilities; empty if it has none."""

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the token ids of some inputs.

        Args:
            encoder: the model's tokenizer.
            columns: the task's input columns, each with one text per input.
        """

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        """Returns what the model makes of a batch: one forward pass, or many."""

    def decoder(self, model_config: Any) -> Decoder:
        """Returns the function that reads the task's columns off what `run` returned."""

    def join(self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64]) -> pa.RecordBatch:
        """Returns one row per input where an input may be several sequences.

        Args:
            decoded: one row per sequence, those of an input one after the other.
            starts: the first sequence of each input, int64 (inputs,).
        """

    def gate_values(self, decoded: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Returns the numbers in which an accelerated model is compared with the plain one."""


def scored_schema(
    task: Task, prefix: str = "", metadata: dict[str, str] | None = None
) -> pa.Schema:
    """Returns the columns that scoring adds to a row, each name behind the prefix."""
    return pa.schema(
        [
            field.with_name(prefix + field.name).with_metadata(metadata)
            for field in (*task.fields, *ROW_FIELDS)
        ]
    )


def column_metadata(fingerprint: str, labels: Sequence[str]) -> dict[str, str]:
    """Returns what each scored column says of the model that made it."""
    return {METADATA_KEY: json.dumps({"model_fingerprint": fingerprint, "labels": list(labels)})}
