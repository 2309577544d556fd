"""What a task is: which columns a model reads and adds, and how the former become the latter.

A task is one file next to this one and one line in `TASKS`. Its numbers are those of the Hugging
Face pipeline of the same name, computed for a whole batch at a time.
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
"""What every task reports for a row: tokens fed to the model, whether the text was truncated, and
why it has no result (null if it has one)."""

METADATA_KEY = "sparkinfer"
"""Key in a scored column's metadata; holds the model's fingerprint and the labels in order."""

Tensors = Mapping[str, Any]
"""The padded tensors of a batch by name, int64 (sequences, longest): the model's inputs, and
anything else the task's `encode` keeps for `decode`."""

Decoder = Callable[[Any, Tensors], pa.RecordBatch]
"""Turns what `run` returned for a batch, and its tensors, into one row per sequence in the order of
the batch; a row whose output is not finite is null."""


class Runtime(Protocol):
    """A model that a backend has made ready to run."""

    def forward(self, tensors: dict[str, Any]) -> Any:
        """Returns the model's outputs by name, as tensors on the CPU, for one padded batch."""


class Task(Protocol):
    """What a model does, by its Hugging Face name.

    Attributes:
        name: value of the option `task`.
        pipeline: name of the transformers pipeline that runs such models.
        auto_class: name of the transformers class that loads them.
        fields: columns that it adds to a row, besides `ROW_FIELDS`.
        evaluation: how its results are measured; None: they are not.
    """

    name: str
    pipeline: str
    auto_class: str
    fields: tuple[pa.Field, ...]
    evaluation: Evaluation | None

    def inputs(self, config: ScoringConfig) -> tuple[str, ...]:
        """Returns the columns that it reads under a configuration, in the order of `encode`."""

    def labels(self, model_config: Any) -> tuple[str, ...]:
        """Returns the label names in the order of the probabilities; empty if it has none."""

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the token ids of some inputs.

        Args:
            encoder: the model's tokenizer.
            columns: the task's input columns, each with one text per input.
        """

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        """Returns the model's output for a batch, from one forward pass or many."""

    def decoder(self, model_config: Any) -> Decoder:
        """Returns the function that turns what `run` returned into the task's columns."""

    def join(self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64]) -> pa.RecordBatch:
        """Returns one row per input, which may be several sequences.

        Args:
            decoded: one row per sequence, those of an input one after the other.
            starts: the first sequence of each input, int64 (inputs,).
        """

    def gate_values(self, decoded: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Returns the numbers by which an accelerated model is compared with the plain one."""


def scored_schema(
    task: Task, prefix: str = "", metadata: dict[str, str] | None = None
) -> pa.Schema:
    """Returns the columns that scoring adds to a row, with the prefix before each name."""
    return pa.schema(
        [
            field.with_name(prefix + field.name).with_metadata(metadata)
            for field in (*task.fields, *ROW_FIELDS)
        ]
    )


def column_metadata(fingerprint: str, labels: Sequence[str]) -> dict[str, str]:
    """Returns the metadata by which each scored column names the model that made it."""
    return {METADATA_KEY: json.dumps({"model_fingerprint": fingerprint, "labels": list(labels)})}
