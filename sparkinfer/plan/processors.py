"""What a configuration asks for: a model, functions, or anything else that adds columns to rows.

To add a kind of processor, add a file with its spec and a line in `PROCESSORS`.
"""

from __future__ import annotations

from collections.abc import Callable

from sparkinfer.config import ScoringConfig
from sparkinfer.functions.processor import FunctionScoring
from sparkinfer.models.any_pipeline import AnyPipeline
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.tasks import TASKS
from sparkinfer.rows.processor import PlannedProcessor
from sparkinfer.rows.several import SeveralProcessors, errors_naming


def model_scoring(config: ScoringConfig) -> PlannedProcessor:
    """Returns the configuration's model as a processor."""
    return ModelScoring(str(config.model), config.revision, ModelOptions.of(config))


PROCESSORS: dict[str, Callable[[ScoringConfig], PlannedProcessor]] = dict.fromkeys(
    TASKS, model_scoring
)
"""By the name of the task."""


def make_processor(config: ScoringConfig) -> PlannedProcessor:
    """Returns the processor that the configuration asks for, or all of them, not yet resolved.

    Raises:
        ConfigError: there is none for a task, or a function is none.
    """
    if config.fn.function:
        return FunctionScoring.of(config)
    if not config.models:
        return _make(config)
    made = {}
    for name, one in config.by_model.items():
        with errors_naming(name):
            made[name] = _make(one)
    return SeveralProcessors(made, dedupe=config.dedupe)


def _make(config: ScoringConfig) -> PlannedProcessor:
    if config.task.name in PROCESSORS:
        return PROCESSORS[config.task.name](config)
    return AnyPipeline.of(config)
