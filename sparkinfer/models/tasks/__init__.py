"""Tasks: what a model does. To add one, add a file here and a line in `TASKS`."""

from __future__ import annotations

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.tasks.base import Task
from sparkinfer.models.tasks.text_classification import TextClassification

TASKS: dict[str, Task] = {task.name: task for task in (TextClassification(),)}


def get_task(name: str) -> Task:
    """Returns the task of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"task={name!r}: expected one of {', '.join(sorted(TASKS))}")
    return TASKS[name]
