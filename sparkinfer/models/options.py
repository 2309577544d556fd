"""Options of one model: the part of the configuration that is sent to its workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparkinfer.config import BatchingConfig, DeepSpeedConfig, LoadingConfig, ScoringConfig
from sparkinfer.models.tasks import get_task

if TYPE_CHECKING:
    from sparkinfer.models.backends.base import Acceleration


@dataclass(frozen=True)
class ModelOptions:
    """How one model is loaded and run, and what it is fed.

    Attributes:
        task: what the model does, by its Hugging Face name.
        input_cols: columns that the task reads, in its order.
        prefix: put before the name of every scored column.
        dtype: number format of the weights, or `auto`.
        acceleration: name of a backend, or `auto`.
        way: the one way in which it may be run, as an earlier gate decided; None: the gate decides.
        tolerance: largest allowed difference of a probability from float32; None: by the dtype.
        max_length: tokens at which texts are truncated; None: the model's own limit.
        batching: budgets and window sizes.
        loading: what loading allows.
        deepspeed: options of that backend.
    """

    task: str
    input_cols: tuple[str, ...]
    prefix: str = ""
    dtype: str = "auto"
    acceleration: str = "auto"
    tolerance: float | None = None
    max_length: int | None = None
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    way: Acceleration | None = None

    @classmethod
    def of(cls, config: ScoringConfig) -> ModelOptions:
        """Returns the options of the configuration's one model.

        Raises:
            ConfigError: there is no such task.
        """
        return cls(
            task=config.task,
            input_cols=get_task(config.task).inputs(config),
            prefix=config.output_prefix,
            dtype=config.dtype,
            acceleration=config.acceleration,
            tolerance=config.gate.tolerance,
            max_length=config.max_length,
            batching=config.batching,
            loading=config.loading,
            deepspeed=config.deepspeed,
        )
