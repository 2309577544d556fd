"""Assigns a text, or a pair of texts, one of several labels, with the probability of each.

The numbers are those of transformers' pipeline called with `top_k=None`; for pairs scored by a
model of sentence-transformers, those of its `CrossEncoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.metrics.texts import TextEvaluation
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.sentence_files import PAIR_FILES, PairFiles, read_pair_files
from sparkinfer.models.tasks.base import (
    PLAIN,
    ModelFiles,
    ModelTask,
    Runtime,
    Task,
    Tensors,
    float_lists,
    without_rows,
)
from sparkinfer.models.tasks.label_names import label_names
from sparkinfer.models.tokens import Encoder

Function = Callable[[Any], Any]
"""Makes scores of logits, float (batch, labels)."""


class TextClassification(Task):
    """Sequence classification: single-label, multi-label and regression models.

    A regression names no label: its `prediction` is null, and `probabilities` holds its numbers, of
    which `probability` is the one if there is but one.
    """

    name = "text-classification"
    pipeline = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    graph_output = "logits"
    heads = ("ForSequenceClassification",)
    pairs = "optional"
    pair_files = PAIR_FILES
    evaluation = TextEvaluation()

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The label, its probability, and the probability of each label."""
        return (
            pa.field("prediction", pa.string()),
            pa.field("probability", pa.float32()),
            pa.field("probabilities", pa.list_(pa.float32())),
        )

    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task with the model's labels; see `Task`."""
        if files.num_texts < 2:
            return _ModelTask(self, files.config, None)
        said = read_pair_files(files.path)
        activation = _activation_of_pairs(files.config, said)
        if said is None:
            return _ModelTask(self, files.config, activation)
        if said.max_length is not None:
            files.tokenizer.model_max_length = said.max_length
        return _ModelTask(self, files.config, activation, said.prompt)


class _ModelTask(ModelTask):
    def __init__(
        self, task: Task, model_config: Any, activation: Function | None, prompt: str = ""
    ) -> None:
        super().__init__(task)
        self.encoding = None if prompt else PLAIN
        self.added_bytes = len(prompt.encode())
        self._prompt = prompt
        self.labels = label_names(model_config)
        self._names = pa.array(self.labels, pa.string())
        self._is_regression = is_regression(model_config)
        self._function = activation or _function(model_config)

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        first, *second = columns
        texts = [self._prompt + text for text in first] if self._prompt else first
        return Inputs.of_one_sequence_each(encoder.encode(texts, *second))

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        return runtime.forward(tensors)["logits"]

    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        scores = self._function(output.float().numpy()).astype(np.float32)
        best = scores.argmax(axis=-1)
        named = self._names.take(pa.array(best))
        top = pa.array(scores[np.arange(len(best)), best])
        if self._is_regression:
            named = pa.nulls(len(best), pa.string())
            top = top if scores.shape[1] == 1 else pa.nulls(len(best), pa.float32())
        columns = [named, top, float_lists(scores)]
        decoded = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        return without_rows(decoded, ~np.isfinite(scores).all(axis=-1))

    def unit(self, wanted: npt.NDArray[np.float32]) -> float:
        """Returns 1, or for a regression the largest number, if all are smaller."""
        if self._function is not _identity:
            return 1.0
        largest = float(np.abs(wanted).max(initial=0.0))
        return min(1.0, max(largest, float(np.finfo(np.float32).tiny)))


def is_regression(model_config: Any) -> bool:
    """Returns whether a model's outputs are numbers of their own rather than labels' scores."""
    kind = model_config.problem_type
    return kind == "regression" or (model_config.num_labels == 1 and kind is None)


def _function(model_config: Any) -> Function:
    """Returns the function that the pipeline applies to logits, chosen as in the pipeline.

    Source: `TextClassificationPipeline.postprocess` of transformers, whose module takes longer to
    import than a small model to load.
    """
    if model_config.problem_type == "regression":
        return _identity
    if model_config.problem_type == "multi_label_classification" or model_config.num_labels == 1:
        return _sigmoid
    return _softmax


def _activation_of_pairs(model_config: Any, said: PairFiles | None) -> Function | None:
    """Returns what sentence-transformers applies to the logits of pairs; None: it is not its model.

    Source: `CrossEncoder.get_default_activation_fn`, and `_parse_model_config` before it.

    Args:
        model_config: the model's configuration, which older versions write into.
        said: what newer ones say.

    Raises:
        ModelLoadError: it is no function of torch.
    """
    own, old = "sentence_transformers", "sbert_ce_default_activation_function"
    if said is None and not (hasattr(model_config, own) or hasattr(model_config, old)):
        return None
    beside = (getattr(model_config, own, None) or {}).get("activation_fn")
    named = (said and said.activation, beside, getattr(model_config, old, None))
    by_default = f"torch.nn.{'Sigmoid' if model_config.num_labels == 1 else 'Identity'}"
    return _torch_function(str(next((name for name in named if name is not None), by_default)))


def _torch_function(path: str) -> Function:
    import torch

    found = getattr(torch.nn, path.rpartition(".")[2], None)
    if not path.startswith("torch.nn.") or not isinstance(found, type):
        raise ModelLoadError(
            f"the model's activation_fn is {path!r}, expected a class of torch.nn, such as "
            "'torch.nn.modules.linear.Identity'; correct it in the model's files"
        )
    module = found()
    return lambda logits: module(torch.from_numpy(logits)).numpy()


def _identity(logits: Any) -> Any:
    return logits


def _sigmoid(logits: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-logits))


def _softmax(logits: Any) -> Any:
    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
