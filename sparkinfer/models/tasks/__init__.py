"""Tasks: what a model does. To add one, add a file here and a line in `TASKS`."""

from __future__ import annotations

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.tasks.base import Task
from sparkinfer.models.tasks.fill_mask import FillMask
from sparkinfer.models.tasks.question_answering import QuestionAnswering
from sparkinfer.models.tasks.text_classification import TextClassification
from sparkinfer.option_groups import TaskConfig
from sparkinfer.validation import read_group

TASKS: dict[str, type[Task]] = {
    "fill-mask": FillMask,
    "question-answering": QuestionAnswering,
    "text-classification": TextClassification,
    "sentiment-analysis": TextClassification,
}
"""By each name that transformers has for it."""


def make_task(config: TaskConfig) -> Task:
    """Returns the configured task.

    Raises:
        ConfigError: there is none of that name, or it has not these options.
    """
    if config.name not in TASKS:
        raise ConfigError(f"task={config.name!r}: expected one of {', '.join(sorted(TASKS))}")
    kind = TASKS[config.name]
    task = kind(read_group(kind.options_class, config.options, "task."))
    task.check()
    return task
