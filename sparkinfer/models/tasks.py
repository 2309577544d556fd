"""Tasks: which columns a model adds to a row, and how they are read off its output.

A task knows its Hugging Face pipeline's post-processing and does it for a whole batch at once;
its numbers are those of the pipeline called with `top_k=None`. Adding a task means adding a class
with the same four members to `TASKS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError

ROW_FIELDS = (
    pa.field("n_tokens", pa.int32()),
    pa.field("truncated", pa.bool_()),
    pa.field("error", pa.string()),
)
"""What every task says of a row: tokens fed to the model, whether the text was cut, and why it
has no prediction (null where it has one)."""

METADATA_KEY = "sparkinfer"
"""Under it, a scored column's metadata holds its model's fingerprint and its labels in order."""

Decoder = Callable[[Any], pa.RecordBatch]
"""From a model's output for a batch to one row per text, in the order of the batch; a row whose
output is not finite is null."""


class Task(Protocol):
    """What a model does, by its Hugging Face name."""

    name: str
    auto_class: str
    fields: tuple[pa.Field, ...]

    def decoder(self, pipe: Any) -> Decoder:
        """Returns the function that reads the task's columns off this pipeline's outputs."""

    def labels(self, model_config: Any) -> tuple[str, ...]:
        """Returns the label names in the order of the probabilities; empty if it has none."""

    def gate_values(self, decoded: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Returns the numbers in which an accelerated model is compared with the plain one."""


class TextClassification:
    """One label out of several for a text, with the probability of each."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    fields = (
        pa.field("prediction", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("probabilities", pa.list_(pa.float32())),
    )

    def labels(self, model_config: Any) -> tuple[str, ...]:
        """Returns the names of `id2label` by label id."""
        return tuple(str(model_config.id2label[i]) for i in range(model_config.num_labels))

    def decoder(self, pipe: Any) -> Decoder:
        """Returns the function that turns logits (batch, num_labels) into scored columns."""
        function = _classification_function(pipe)
        names = pa.array(self.labels(pipe.model.config), pa.string())

        def decode(output: Any) -> pa.RecordBatch:
            scores = function(output["logits"].float().numpy()).astype(np.float32)
            best = scores.argmax(axis=-1)
            columns = [
                names.take(pa.array(best)),
                pa.array(scores[np.arange(len(best)), best]),
                _list_array(scores),
            ]
            decoded = pa.RecordBatch.from_arrays(columns, schema=pa.schema(self.fields))
            unusable = ~np.isfinite(scores).all(axis=-1)
            if not unusable.any():
                return decoded
            return decoded.take(pa.array(np.arange(len(best)), mask=unusable))

        return decode

    def gate_values(self, decoded: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Returns the probabilities, float32 (rows * num_labels,)."""
        values: npt.NDArray[np.float32] = decoded.column("probabilities").flatten().to_numpy()
        return values


def _classification_function(pipe: Any) -> Callable[[Any], Any]:
    """Returns what the pipeline applies to logits, chosen as the pipeline chooses it.

    Source: `TextClassificationPipeline.postprocess` of transformers.
    """
    from transformers.pipelines.text_classification import (
        ClassificationFunction,
        sigmoid,
        softmax,
    )

    config = pipe.model.config
    chosen = pipe._postprocess_params.get("function_to_apply")
    if chosen is None:
        if config.problem_type == "regression":
            chosen = ClassificationFunction.NONE
        elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
            chosen = ClassificationFunction.SIGMOID
        else:
            chosen = ClassificationFunction.SOFTMAX
    functions = {"sigmoid": sigmoid, "softmax": softmax, "none": lambda logits: logits}
    function: Callable[[Any], Any] = functions[ClassificationFunction(chosen).value]
    return function


def _list_array(values: npt.NDArray[np.float32]) -> pa.ListArray:
    """Returns a float32 (rows, width) array as one list per row, without a Python loop."""
    rows, width = values.shape
    offsets = np.arange(0, (rows + 1) * width, width, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


TASKS: dict[str, Task] = {task.name: task for task in (TextClassification(),)}


def get_task(name: str) -> Task:
    """Returns the task of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"task={name!r}: expected one of {', '.join(sorted(TASKS))}")
    return TASKS[name]


def scored_schema(task: Task, prefix: str = "") -> pa.Schema:
    """Returns the columns that scoring adds to a row, each name behind the prefix."""
    return pa.schema(
        [field.with_name(prefix + field.name) for field in (*task.fields, *ROW_FIELDS)]
    )


def column_metadata(fingerprint: str, labels: Sequence[str]) -> dict[str, str]:
    """Returns what each scored column says of the model that made it."""
    return {METADATA_KEY: json.dumps({"model_fingerprint": fingerprint, "labels": list(labels)})}
