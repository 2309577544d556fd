"""Options of a model as tests give them."""

from __future__ import annotations

from typing import Any

from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks import make_task
from sparkinfer.models.text_sources import ColumnText, TextSource
from sparkinfer.option_groups import GenerationConfig, TaskConfig


def options_of(
    task: str = "text-classification",
    columns: tuple[str, ...] = ("text",),
    task_options: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    **options: Any,
) -> ModelOptions:
    """Returns the options of a model with a task that reads its texts from these columns."""
    sources = tuple(TextSource("input_col", ColumnText("input_col", name)) for name in columns)
    made = make_task(TaskConfig(task, task_options or {}), GenerationConfig(**(generation or {})))
    return ModelOptions(made, sources, **options)
