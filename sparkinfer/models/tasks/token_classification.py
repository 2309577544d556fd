"""Finds entities: spans of a text that have a label.

The entities are those of transformers' pipeline. Places are counted in characters as Python counts
them, one for each code point, so that `text[start:end]` is the entity in Python; Java and
JavaScript count a character beyond U+FFFF twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.metrics.entities import EntityEvaluation
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.places import END, IN_TEXT, START, encode_with_places
from sparkinfer.models.tasks.base import (
    ModelFiles,
    ModelTask,
    Runtime,
    Task,
    Tensors,
    numbers_of,
    without_rows,
)
from sparkinfer.models.tasks.entities import ENTITY, EntityMaker, Strategy, Window
from sparkinfer.models.tasks.label_names import label_names
from sparkinfer.models.tokens import Encoder
from sparkinfer.validation import Options, at_least


@dataclass(frozen=True, init=False)
class EntityOptions(Options):
    """How tokens become entities."""

    aggregation_strategy: Strategy = "none"
    """How tokens are grouped; none: each is an entity of its own. The tokens of a word have their
    own labels (simple), the label of the first, the one with the highest score (max), or that of
    their mean scores (average)."""
    ignore_labels: tuple[str, ...] = ("O",)
    """Labels, or groups of them, that are no entities."""
    stride: int | None = field(default=None, metadata=at_least(0))
    """Tokens of a text beyond the model's limit that one window shares with the next; None: what is
    beyond the limit is cut off."""


class TokenClassification(Task):
    """Named entities, parts of speech and the like."""

    name = "token-classification"
    pipeline = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    graph_output = "logits"
    heads = ("ForTokenClassification",)
    evaluation = EntityEvaluation()
    options_class = EntityOptions

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The entities."""
        return (pa.field("entities", pa.list_(ENTITY)),)

    def check(self) -> None:
        """Raises ConfigError for windows without groups."""
        if self.options.stride is not None and self.options.aggregation_strategy == "none":
            raise ConfigError(
                f"task.stride={self.options.stride} with task.aggregation_strategy='none': tokens "
                "that two windows share would be found twice; give another strategy, such as "
                "'simple', or drop the stride"
            )

    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task with the model's labels; see `Task`."""
        _refuse_without_offsets(self.options, files.tokenizer)
        _refuse_without_decoder(self.options, files)
        return _ModelTask(self, files)


class _ModelTask(ModelTask):
    def __init__(self, task: Task, files: ModelFiles) -> None:
        super().__init__(task)
        self.labels = label_names(files.config)
        self._tokenizer = files.tokenizer
        self._is_mean = task.options.aggregation_strategy == "average"

    def check_limit(self, max_length: int) -> None:
        stride, room = self.task.options.stride, self._room(max_length)
        if stride is not None and stride >= room:
            raise ConfigError(
                f"task.stride={stride}: a window has {max_length} tokens, {room} of them for the "
                f"text; expected a stride below {room}"
            )

    def _room(self, max_length: int) -> int:
        return max_length - int(self._tokenizer.num_special_tokens_to_add())

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        (texts,) = columns
        stride = self.task.options.stride
        if stride is not None and stride >= self._room(encoder.max_length):
            stride = None  # only the gate's shortest probes are cut at so little
        inputs = encode_with_places(encoder, texts, stride)
        return Inputs(inputs.encoded, inputs.starts, pa.table({"text": list(texts)}))

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        return runtime.forward(tensors)["logits"]

    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        """Returns the tokens of each sequence that are the text's, and their scores, as lists.

        But for the mean, of which all scores are needed, these are the highest and its label.
        """
        tokens = _TextTokens(tensors)
        scores = _softmax(tokens.of(output.float().numpy()))
        columns = {name: tokens.of(tensors[name].numpy()) for name in ("input_ids", START, END)}
        if self._is_mean:
            columns["scores"] = scores
        else:
            best = scores.argmax(axis=-1)
            columns["label"] = best
            columns["score"] = np.take_along_axis(scores, best[:, None], axis=-1)
        return tokens.rows(columns, scores)

    def join(
        self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64], kept: pa.Table
    ) -> pa.RecordBatch:
        texts = kept.column("text").to_pylist()
        windows = list(self._windows(decoded))
        ends = np.append(starts[1:], len(windows))
        entities = [
            self._entities(text, windows[start:end])
            for text, start, end in zip(texts, starts, ends, strict=True)
        ]
        column = pa.array(entities, pa.list_(ENTITY))
        return pa.RecordBatch.from_arrays([column], schema=self.schema)

    def _entities(self, text: str, windows: Sequence[Window | None]) -> Any:
        whole = [window for window in windows if window is not None]
        return self._maker.entities(text, whole) if len(whole) == len(windows) else None

    @cached_property
    def _maker(self) -> EntityMaker:
        options = self.task.options
        return EntityMaker(
            self._tokenizer, self.labels, options.aggregation_strategy, options.ignore_labels
        )

    def _windows(self, decoded: pa.RecordBatch) -> Iterator[Window | None]:
        """Yields the tokens of each sequence; None if their scores are not finite."""
        is_valid = decoded.column(0).is_valid().to_pylist()
        columns = {name: _parts(decoded.column(name)) for name in decoded.schema.names}
        for row, is_there in enumerate(is_valid):
            part = {name: parts[row] for name, parts in columns.items()}
            yield self._window(part) if is_there else None

    def _window(self, part: dict[str, npt.NDArray[Any]]) -> Window:
        offsets = None
        if self._tokenizer.is_fast:
            offsets = list(zip(part[START].tolist(), part[END].tolist(), strict=True))
        ids = part["input_ids"].tolist()
        if self._is_mean:
            return Window(ids, offsets, part["scores"].reshape(len(ids), len(self.labels)))
        scores = np.zeros((len(ids), len(self.labels)), np.float32)
        scores[np.arange(len(ids)), part["label"]] = part["score"]
        return Window(ids, offsets, scores)

    def try_out(self, runtime: Runtime, tensors: Tensors) -> pa.RecordBatch:
        """Returns the probability of every label for each token of the text.

        Padding is judged by these numbers rather than by entities: two labels that are as probable
        as one another change places by the rounding of float32 alone.
        """
        tokens = _TextTokens(tensors)
        scores = _softmax(tokens.of(self.run(runtime, tensors).float().numpy()))
        return tokens.rows({"scores": scores}, scores)

    def difference(self, expected: pa.RecordBatch, found: pa.RecordBatch) -> float:
        """Returns the largest difference of a probability, and no less than changed labels weigh.

        A token with another label, and so a changed span, counts with the lead that its own label
        had over the other: labels may change only where they were as good as equal.
        """
        largest = super().difference(expected, found)
        wanted, values = numbers_of(expected), numbers_of(found)
        if np.isnan(largest) or not len(wanted):
            return largest
        wanted = wanted.reshape(-1, len(self.labels))
        chosen = values.reshape(wanted.shape).argmax(axis=-1)
        lead = wanted.max(axis=-1) - wanted[np.arange(len(wanted)), chosen]
        return max(largest, float(lead.max()))


class _TextTokens:
    """The tokens of a batch that are the texts' own, neither added nor padding.

    Args:
        tensors: of the batch.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._are = tensors[IN_TEXT].numpy() != 0
        self._counts = self._are.sum(axis=-1)

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the values of these tokens alone, (tokens, ...)."""
        found: npt.NDArray[Any] = values[self._are]
        return found

    def rows(
        self, columns: dict[str, npt.NDArray[Any]], scores: npt.NDArray[np.float32]
    ) -> pa.RecordBatch:
        """Returns values of tokens as one list per sequence, null where a score is not finite.

        Args:
            columns: by name, each (tokens, ...).
            scores: float32 (tokens, labels).
        """
        lists = [self._lists(values) for values in columns.values()]
        owners = np.repeat(np.arange(len(self._counts)), self._counts)
        unusable = np.zeros(len(self._counts), np.bool_)
        unusable[owners[~np.isfinite(scores).all(axis=-1)]] = True
        return without_rows(pa.RecordBatch.from_arrays(lists, names=list(columns)), unusable)

    def _lists(self, values: npt.NDArray[Any]) -> pa.LargeListArray:
        width = int(np.prod(values.shape[1:]))
        offsets = np.concatenate([[0], np.cumsum(self._counts * width)]).astype(np.int64)
        kind = np.float32 if values.dtype.kind == "f" else np.int32
        flat = pa.array(values.reshape(-1).astype(kind))
        return pa.LargeListArray.from_arrays(pa.array(offsets), flat)


def _parts(lists: pa.LargeListArray) -> list[npt.NDArray[Any]]:
    """Returns each list of numbers; one of length 0 in place of a null."""
    return np.split(lists.values.to_numpy(), lists.offsets.to_numpy()[1:-1])


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns probabilities, float32 (tokens, labels), computed as in the pipeline.

    Source: `TokenClassificationPipeline.postprocess` of transformers.
    """
    shifted = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _refuse_without_offsets(options: EntityOptions, tokenizer: Any) -> None:
    """Raises ConfigError for what takes the places of tokens if the tokenizer does not say them."""
    if tokenizer.is_fast:
        return
    strategy = options.aggregation_strategy
    if strategy in ("first", "average", "max"):
        raise ConfigError(
            f"task.aggregation_strategy={strategy!r}: this model's tokenizer, a "
            f"{type(tokenizer).__name__}, does not say which tokens are one word; expected 'none' "
            "or 'simple', or a model with a tokenizer.json"
        )
    if options.stride is not None:
        raise ConfigError(
            f"task.stride={options.stride}: this model's tokenizer, a {type(tokenizer).__name__}, "
            "does not say where tokens are, which windows take; drop the option, or give a model "
            "with a tokenizer.json"
        )


def _refuse_without_decoder(options: EntityOptions, files: ModelFiles) -> None:
    """Raises ModelLoadError if words cannot be made of tokens; some releases then fail on any."""
    if options.aggregation_strategy == "none":
        return
    try:
        files.tokenizer.convert_tokens_to_string([])
    except Exception as error:  # AttributeError, for one
        raise ModelLoadError(
            f"model {str(files.path)!r}: its tokenizer does not make text of tokens "
            f"({type(error).__name__}: {error}), expected a decoder in tokenizer.json; add it, or "
            "give task.aggregation_strategy='none'"
        ) from error
