"""A task that the package does not have, made of this file and its last line.

It reads two texts, makes several sequences of a row, and needs more than the model's output: for
each window of four tokens of a text and its title it takes the mean of the hidden states that are
no padding, and for each row the largest of these means.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.models.encoded import Encoded, Inputs
from sparkinfer.models.tasks import TASKS
from sparkinfer.models.tasks.base import (
    ModelFiles,
    ModelTask,
    Runtime,
    Task,
    Tensors,
    float_lists,
)
from sparkinfer.models.tokens import Encoder

WINDOW = 4


class LargestWindowMean(Task):
    """The largest window's mean, by dimension."""

    name = "largest-window-mean"
    pipeline = "feature-extraction"
    auto_class = "AutoModel"
    pairs = "required"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        return (pa.field("means", pa.list_(pa.float32())), pa.field("windows", pa.int32()))

    def of_model(self, files: ModelFiles) -> ModelTask:
        return WindowMeans(self)


class WindowMeans(ModelTask):
    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        ids: list[list[int]] = []
        starts: list[int] = []
        for text, title in zip(*columns, strict=True):
            starts.append(len(ids))
            tokens = encoder.tokenizer(title + " " + text, add_special_tokens=False)["input_ids"]
            ids += [tokens[i : i + WINDOW] for i in range(0, len(tokens), WINDOW)] or [[]]
        lengths = np.array([len(one) for one in ids], np.int64)
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
        columns_of_tokens = {"input_ids": flat, "attention_mask": np.ones_like(flat)}
        empty = {int(i): "no tokens" for i in np.flatnonzero(lengths == 0)}
        cut = np.zeros(len(ids), np.bool_)
        encoded = Encoded(columns_of_tokens, lengths, cut, empty)
        shouted = [title.upper() for title in columns[1]]
        return Inputs(encoded, np.array(starts, np.int64), pa.table({"title": shouted}))

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        def mean(outputs: Any, placed: Tensors) -> dict[str, Any]:
            mask = placed["attention_mask"].unsqueeze(-1).float()
            hidden = outputs["last_hidden_state"].float()
            return {"means": (hidden * mask).sum(dim=1) / mask.sum(dim=1)}

        return runtime.forward(tensors, mean)["means"]

    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([float_lists(output.numpy())], names=["means"])

    def join(
        self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64], kept: pa.Table
    ) -> pa.RecordBatch:
        means = np.array(decoded.column("means").to_pylist(), np.float32)
        largest = np.maximum.reduceat(means, starts)
        windows = np.diff(starts, append=len(means))
        assert [len(title) > 0 for title in kept.column("title").to_pylist()] == [True] * len(
            starts
        )
        columns = [float_lists(largest), pa.array(windows, pa.int32())]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


TASKS[LargestWindowMean.name] = LargestWindowMean
