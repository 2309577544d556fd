"""Assigns a text one of several labels, with the probability of each.

The numbers are those of transformers' pipeline called with `top_k=None`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ModelLoadError
from sparkinfer.metrics.base import Evaluation
from sparkinfer.metrics.classification import ClassificationEvaluation
from sparkinfer.models.tasks.base import Decoder, Runtime, Tensors
from sparkinfer.models.tokens import Encoder, Inputs


class TextClassification:
    """Single-label, multi-label and single-output sequence classification models."""

    name = "text-classification"
    pipeline = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    fields = (
        pa.field("prediction", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("probabilities", pa.list_(pa.float32())),
    )
    evaluation: Evaluation | None = ClassificationEvaluation()

    def inputs(self, config: ScoringConfig) -> tuple[str, ...]:
        """Returns the column of the text."""
        return (config.input_col,)

    def labels(self, model_config: Any) -> tuple[str, ...]:
        """Returns the names of `id2label` by label id.

        Raises:
            ModelLoadError: the ids are not 0, 1, 2, ...: which output has which name is unknown.
        """
        names = model_config.id2label
        if sorted(names) != list(range(len(names))):
            ids = ", ".join(map(str, sorted(names)[:10]))
            raise ModelLoadError(
                f"config.json: the label ids of id2label are {ids}, expected 0 to "
                f"{len(names) - 1} without a gap, one label for each output of the model; correct "
                "id2label and label2id in the model's config.json"
            )
        return tuple(str(names[i]) for i in range(len(names)))

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns one sequence per text, truncated to the model's limit."""
        return Inputs.of_one_sequence_each(encoder.encode(columns[0]))

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        """Returns the logits, float (batch, num_labels), of one forward pass."""
        return runtime.forward(dict(tensors))["logits"]

    def decoder(self, model_config: Any) -> Decoder:
        """Returns the function that turns logits into scored columns."""
        function = _classification_function(model_config)
        names = pa.array(self.labels(model_config), pa.string())

        def decode(logits: Any, _: Tensors) -> pa.RecordBatch:
            scores = function(logits.float().numpy()).astype(np.float32)
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

    def join(self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64]) -> pa.RecordBatch:
        """Returns the rows as they are: an input is one sequence."""
        return decoded

    def gate_values(self, decoded: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Returns the probabilities, float32 (rows * num_labels,)."""
        values: npt.NDArray[np.float32] = decoded.column("probabilities").flatten().to_numpy()
        return values


def _classification_function(model_config: Any) -> Callable[[Any], Any]:
    """Returns the function that the pipeline applies to logits, chosen as in the pipeline.

    Source: `TextClassificationPipeline.postprocess` of transformers.
    """
    from transformers.pipelines.text_classification import sigmoid, softmax

    function: Callable[[Any], Any] = softmax
    if model_config.problem_type == "regression":
        function = _identity
    elif model_config.problem_type == "multi_label_classification" or model_config.num_labels == 1:
        function = sigmoid
    return function


def _identity(logits: Any) -> Any:
    return logits


def _list_array(values: npt.NDArray[np.float32]) -> pa.ListArray:
    """Returns a float32 (rows, width) array as one list per row, without a Python loop."""
    rows, width = values.shape
    offsets = np.arange(0, (rows + 1) * width, width, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))
