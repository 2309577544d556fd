"""A task that the package does not have, made of this file and its last line.

It reads two columns, makes several sequences of a row, and its decoder needs more than the model's
output: for each window of four tokens of a text and its title it takes the mean of the hidden
states that are no padding, and for each row the largest of these means.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.tasks import TASKS
from sparkinfer.models.tasks.base import Decoder, Runtime, Tensors
from sparkinfer.models.tokens import Encoded, Encoder, Inputs

WINDOW = 4


class LargestWindowMean:
    """The largest window's mean, by dimension."""

    name = "largest-window-mean"
    pipeline = "feature-extraction"
    auto_class = "AutoModel"
    fields = (pa.field("means", pa.list_(pa.float32())), pa.field("windows", pa.int32()))
    evaluation = None

    def inputs(self, config: ScoringConfig) -> tuple[str, ...]:
        return (config.input_col, "title")

    def labels(self, model_config: Any) -> tuple[str, ...]:
        return ()

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
        return Inputs(Encoded(columns_of_tokens, lengths, cut, empty), np.array(starts, np.int64))

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        return runtime.forward(dict(tensors))

    def decoder(self, model_config: Any) -> Decoder:
        def decode(output: Any, tensors: Tensors) -> pa.RecordBatch:
            hidden = output[0] if isinstance(output, tuple) else output["last_hidden_state"]
            mask = tensors["attention_mask"].unsqueeze(-1).float()
            means = (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1)
            columns = [pa.array(means.tolist(), pa.list_(pa.float32()))]
            return pa.RecordBatch.from_arrays(
                [*columns, pa.array([1] * len(means), pa.int32())], schema=pa.schema(self.fields)
            )

        return decode

    def join(self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64]) -> pa.RecordBatch:
        means = np.array(decoded.column("means").to_pylist(), np.float32)
        largest = np.maximum.reduceat(means, starts)
        windows = np.diff(starts, append=len(means))
        columns = [
            pa.array(largest.tolist(), pa.list_(pa.float32())),
            pa.array(windows, pa.int32()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(self.fields))

    def gate_values(self, decoded: pa.RecordBatch) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = decoded.column("means").flatten().to_numpy()
        return values


class WithMadeUpTask(ModelScoring):
    """Has a worker that unpickles it know the task, as it knows those of the package."""


TASKS[LargestWindowMean.name] = LargestWindowMean()
