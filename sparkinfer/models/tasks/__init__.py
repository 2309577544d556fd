"""Tasks: what a model does. To add one, add a file here and a line in `TASKS`."""

from __future__ import annotations

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.tasks.base import Task
from sparkinfer.models.tasks.embedding import Embedding
from sparkinfer.models.tasks.fill_mask import FillMask
from sparkinfer.models.tasks.question_answering import QuestionAnswering
from sparkinfer.models.tasks.text2text_generation import Text2TextGeneration
from sparkinfer.models.tasks.text_classification import TextClassification
from sparkinfer.models.tasks.text_generation import TextGeneration
from sparkinfer.models.tasks.token_classification import TokenClassification
from sparkinfer.models.tasks.zero_shot import ZeroShotClassification
from sparkinfer.option_groups import GenerationConfig, TaskConfig
from sparkinfer.validation import option_names, read_group

TASKS: dict[str, type[Task]] = {
    "fill-mask": FillMask,
    "question-answering": QuestionAnswering,
    "text-classification": TextClassification,
    "sentiment-analysis": TextClassification,
    "embedding": Embedding,
    "feature-extraction": Embedding,
    "sentence-similarity": Embedding,
    "text-generation": TextGeneration,
    "text2text-generation": Text2TextGeneration,
    "summarization": Text2TextGeneration,
    "translation": Text2TextGeneration,
    "token-classification": TokenClassification,
    "ner": TokenClassification,
    "zero-shot-classification": ZeroShotClassification,
}
"""By each name that transformers has for it."""


def make_task(config: TaskConfig, generation: GenerationConfig = GenerationConfig()) -> Task:
    """Returns the configured task.

    Args:
        config: its name and options.
        generation: how it generates text, if that is what it does.

    Raises:
        ConfigError: there is none of that name, or it has not these options.
    """
    if config.name not in TASKS:
        raise ConfigError(f"task={config.name!r}: expected one of {', '.join(sorted(TASKS))}")
    kind = TASKS[config.name]
    _refuse_options_of_others(config)
    options = read_group(kind.options_class, config.options, "task.")
    task = kind.of_options(options, generation, config.name)
    task.check()
    return task


def _refuse_options_of_others(config: TaskConfig) -> None:
    """Raises ConfigError for an option that only other tasks have."""
    known = option_names(TASKS[config.name].options_class)
    for name in config.options:
        having = sorted(
            {kind.name for kind in TASKS.values() if name in option_names(kind.options_class)}
        )
        if name not in known and having:
            raise ConfigError(
                f"task.{name} with task={config.name!r}: it is an option of {', '.join(having)}; "
                f"give --task {having[0]}, or drop it"
            )
