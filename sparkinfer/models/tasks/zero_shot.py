"""Assigns a text labels that the model was not trained for.

Each label makes a hypothesis, and the model, one of natural language inference, says how far it
follows from the text. The numbers are those of transformers' pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.logs import get_logger
from sparkinfer.metrics.zero_shot import ZeroShotEvaluation
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.tasks.base import (
    ModelFiles,
    ModelTask,
    Runtime,
    Task,
    Tensors,
    float_lists,
    without_rows,
)
from sparkinfer.models.tokens import Encoder
from sparkinfer.validation import Options, read_by

logger = get_logger(__name__)


def _listed(value: Any) -> Any:
    """Returns labels as a list; they may be given as text with commas between them."""
    if isinstance(value, str):
        return [label.strip() for label in value.split(",") if label.strip()]
    return value


@dataclass(frozen=True, init=False)
class ZeroShotOptions(Options):
    """What is asked of a text."""

    candidate_labels: tuple[str, ...] = field(default=(), metadata=read_by(_listed))
    """The labels, as a list or with commas between them."""
    hypothesis_template: str = "This example is {}."
    """The hypothesis, with the label in place of the braces."""
    multi_label: bool = False
    """Whether several labels may be true: each is then scored by itself, against its contradiction,
    as a single label always is; else the scores of all labels sum to 1."""


class ZeroShotClassification(Task):
    """Classification by labels of the user's."""

    name = "zero-shot-classification"
    pipeline = "zero-shot-classification"
    auto_class = "AutoModelForSequenceClassification"
    graph_output = "logits"
    heads = ("ForSequenceClassification",)
    evaluation = ZeroShotEvaluation()
    options_class = ZeroShotOptions

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The labels and their scores, the best first, and the best alone."""
        return (
            pa.field("labels", pa.list_(pa.string())),
            pa.field("scores", pa.list_(pa.float32())),
            pa.field("prediction", pa.string()),
            pa.field("probability", pa.float32()),
        )

    def check(self) -> None:
        """Raises ConfigError for labels that make no hypotheses of their own."""
        labels = self.options.candidate_labels
        if not labels:
            raise ConfigError(
                f"task={self.name!r} takes labels; give them as "
                "--set task.candidate_labels='[politics, sports]'"
            )
        repeated = next((label for label in labels if labels.count(label) > 1), None)
        if repeated is not None:
            raise ConfigError(
                f"task.candidate_labels={list(labels)}: {repeated!r} appears twice; name each once"
            )
        _ = self.hypotheses

    @property
    def is_each_alone(self) -> bool:
        """Whether a label's score does not depend on the others."""
        return bool(self.options.multi_label) or len(self.options.candidate_labels) == 1

    @property
    def hypotheses(self) -> list[str]:
        """That of each label.

        Raises:
            ConfigError: the template does not hold the label.
        """
        template = self.options.hypothesis_template
        try:
            made = [template.format(label) for label in self.options.candidate_labels]
        except (ValueError, LookupError, AttributeError) as error:
            raise ConfigError(
                f"task.hypothesis_template={template!r}: {type(error).__name__}: {error}; write "
                "{} where the label goes, and braces that are text twice"
            ) from None
        if template in made or len(set(made)) < len(made):
            raise ConfigError(
                f"task.hypothesis_template={template!r} makes the same of different labels; write "
                "{} where the label goes"
            )
        return made

    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task with the model's outputs for entailment; see `Task`."""
        return _ModelTask(self, files)


class _ModelTask(ModelTask):
    task: ZeroShotClassification

    def __init__(self, task: ZeroShotClassification, files: ModelFiles) -> None:
        super().__init__(task)
        self.labels = task.options.candidate_labels
        self._names = pa.array(self.labels, pa.string())
        self._hypotheses = task.hypotheses
        self._outputs = _outputs(files, task.is_each_alone)
        alone, pair = map(files.tokenizer.num_special_tokens_to_add, (False, True))
        longest = max(self._hypotheses, key=lambda text: len(_ids(files.tokenizer, text)))
        self._longest, self._added = longest, len(_ids(files.tokenizer, longest)) + pair
        self.added_bytes = max(len(text.encode()) for text in self._hypotheses) + pair - alone

    def check_limit(self, max_length: int) -> None:
        if self._added >= max_length:
            raise ConfigError(
                f"the hypothesis {self._longest!r} takes {self._added} tokens, and the model at "
                f"most {max_length} with the text; shorten task.hypothesis_template or the labels"
            )

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        (texts,) = columns
        number = len(self.labels)
        repeated = [text for text in texts for _ in range(number)]
        # Only the gate's shortest probes leave no room for a text beside the hypothesis.
        is_short = encoder.max_length <= self._added
        encoded = encoder.encode(
            repeated,
            self._hypotheses * len(texts),
            cut="longest_first" if is_short else "only_first",
        )
        return Inputs(encoded, np.arange(0, len(repeated), number, dtype=np.int64))

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        return runtime.forward(tensors)["logits"]

    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        """Returns the logits of contradiction and entailment of each pair."""
        logits = output.float().numpy()[:, self._outputs]
        decoded = pa.RecordBatch.from_arrays(
            [pa.array(column) for column in logits.T.copy()], names=["contradicts", "follows"]
        )
        return without_rows(decoded, ~np.isfinite(logits).all(axis=-1))

    def join(
        self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64], kept: pa.Table
    ) -> pa.RecordBatch:
        logits = np.stack([column.to_numpy(zero_copy_only=False) for column in decoded.columns])
        scores = self._scores(*logits.reshape(2, len(starts), len(self.labels)))
        order = scores.argsort(axis=-1)[:, ::-1]
        ranked = np.take_along_axis(scores, order, axis=-1)
        ends = pa.array(np.arange(0, order.size + 1, len(self.labels), dtype=np.int32))
        labels = pa.ListArray.from_arrays(ends, self._names.take(pa.array(order.ravel())))
        best = self._names.take(pa.array(order[:, 0]))
        columns = [labels, float_lists(ranked), best, pa.array(ranked[:, 0].copy())]
        joined = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        return without_rows(joined, np.isnan(scores).any(axis=-1))

    def _scores(
        self, contradicts: npt.NDArray[np.float32], follows: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Returns the score of each label, float32 (inputs, labels).

        Source: `ZeroShotClassificationPipeline.postprocess` of transformers; here the greatest
        logit is taken off before, so that its exponential is finite.
        """
        if self.task.is_each_alone:
            top = np.maximum(contradicts, follows)
            weights = np.exp(follows - top)
            total = weights + np.exp(contradicts - top)
        else:
            weights = np.exp(follows - follows.max(axis=-1, keepdims=True))
            total = weights.sum(axis=-1, keepdims=True)
        return (weights / total).astype(np.float32)  # type: ignore[no-any-return]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _outputs(files: ModelFiles, is_each_alone: bool) -> list[int]:
    """Returns the model's outputs for contradiction and entailment, negative from the last.

    Source: `ZeroShotClassificationPipeline` of transformers.

    Raises:
        ModelLoadError: they are one.
    """
    named = files.config.label2id.items()
    entailment = next((id_ for name, id_ in named if name.lower().startswith("entail")), -1)
    if entailment < 0:
        logger.warning(
            "%s names no output that begins with 'entail': the last one is used, as the pipeline "
            "does; was it trained for natural language inference?",
            f"model {str(files.path)!r}",
        )
    if files.config.num_labels == 1 and is_each_alone:
        raise ModelLoadError(
            f"model {str(files.path)!r} has one output, expected one for entailment and one for "
            "contradiction; give a model of natural language inference"
        )
    return [-1 if entailment == 0 else 0, entailment]
