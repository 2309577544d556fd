"""Scores texts the way a worker does, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.models.backends import PLAIN
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.gate import load_way
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel
from sparkinfer.models.scorer import Scorer
from sparkinfer.option_groups import BatchingConfig, DeepSpeedConfig
from tests import model_options


def options_of(
    dtype: str = "auto",
    acceleration: str = "none",
    kernel_inject: bool = False,
    **batching: int,
) -> ModelOptions:
    """Returns the options of a text classifier."""
    return model_options.options_of(
        dtype=dtype,
        acceleration=acceleration,
        batching=BatchingConfig(**batching),
        deepspeed=DeepSpeedConfig(kernel_inject=kernel_inject),
    )


def score(scorer: Scorer, texts: Sequence[str]) -> pa.Table:
    """Returns the scored columns of some texts."""
    batch = pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], names=["text"])
    return pa.Table.from_batches(scorer.process([batch]), scorer.schema)


def scores_of(
    model: RunningModel, options: ModelOptions, texts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Returns the probabilities of some texts, float32 (texts, labels); none may fail."""
    scored = score(Scorer(model, options), texts)
    assert scored["error"].null_count == len(texts), scored["error"].drop_null()[:3]
    values: Any = scored["probabilities"].combine_chunks().flatten().to_numpy()
    return np.asarray(values, np.float32).reshape(len(texts), -1)


def reference_of(path: Path, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Returns the probabilities of plain float32 on the CPU."""
    options = options_of("float32")
    return scores_of(load_way(Checkpoint(path, options, "cpu"), PLAIN), options, texts)
