"""Options of one model: the part of the configuration that is sent to its workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError
from sparkinfer.models.preprocess import Preprocess
from sparkinfer.models.tasks import make_task
from sparkinfer.models.tasks.base import Pairs, Task
from sparkinfer.models.text_sources import ColumnText, TemplateText, TextSource
from sparkinfer.option_groups import (
    BatchingConfig,
    DeepSpeedConfig,
    GateConfig,
    LoadingConfig,
    ParallelConfig,
)

if TYPE_CHECKING:
    from sparkinfer.models.backends.base import Acceleration


@dataclass(frozen=True)
class ModelOptions:
    """How one model is loaded and run, and what it is fed.

    Attributes:
        task: what the model does.
        texts: where each of the task's texts comes from.
        prefix: put before the name of every scored column.
        dtype: number format of the weights, or `auto`.
        acceleration: name of a backend, or `auto`.
        way: the one way in which it may be run, as an earlier gate decided; None: the gate decides.
        gate: what an accelerated model must show before it scores rows.
        max_length: tokens at which texts are truncated; None: the model's own limit.
        batching: budgets and window sizes.
        loading: what loading allows.
        deepspeed: options of that backend.
        parallel: how a model that is larger than one GPU is run.
        dedupe: whether equal inputs follow one another, so that none need be scored again.
    """

    task: Task
    texts: tuple[TextSource, ...]
    prefix: str = ""
    dtype: str = "auto"
    acceleration: str = "auto"
    max_length: int | None = None
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    way: Acceleration | None = None
    dedupe: bool = False

    @classmethod
    def of(cls, config: ScoringConfig) -> ModelOptions:
        """Returns the options of the configuration's one model.

        Raises:
            ConfigError: there is no such task, or it does not read what is configured.
        """
        task = make_task(config.task, config.generation)
        return cls(
            task=task,
            texts=texts_of(config, task),
            prefix=config.output_prefix,
            dtype=config.dtype,
            acceleration=_acceleration(config),
            max_length=config.max_length,
            batching=config.batching,
            loading=config.loading,
            deepspeed=config.deepspeed,
            parallel=config.parallel,
            gate=config.gate,
            dedupe=config.dedupe,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the texts are made of."""
        return tuple(dict.fromkeys(name for text in self.texts for name in text.made_of.columns))

    @property
    def files(self) -> tuple[str, ...]:
        """Patterns of the model's files that matter beside those of every model."""
        return self.task.files + (self.task.pair_files if len(self.texts) == 2 else ())

    def settings(self) -> dict[str, Any]:
        """Returns the options that determine the output, by name, as JSON values."""
        return {
            **settings_of_texts(self.texts),
            "task": self.task.name,
            "max_length": self.max_length,
            **self.task.settings(),
        }


def _acceleration(config: ScoringConfig) -> str:
    """Returns the backend that was asked for, if only by what it alone can do."""
    by_name = config.acceleration != "auto" or not config.parallel.is_asked
    return config.acceleration if by_name else "deepspeed"


class ReadsTexts(Protocol):
    """What a configuration's texts are for; see `Task`."""

    @property
    def pairs(self) -> Pairs: ...  # noqa: D102
    @property
    def takes_messages(self) -> bool: ...  # noqa: D102


def settings_of_texts(texts: Sequence[TextSource]) -> dict[str, Any]:
    """Returns where texts come from, by name of the option, as JSON values."""
    text, *others = (one.made_of for one in texts)
    preprocess = texts[0].preprocess
    return {
        "input_col": text.column if isinstance(text, ColumnText) else None,
        "input_template": text.template if isinstance(text, TemplateText) else None,
        "template.null": text.null if isinstance(text, TemplateText) else None,
        "text_pair_col": others[0].columns[0] if others else None,
        "preprocess": preprocess.identity() if preprocess else None,
        "preprocess.version": preprocess.version if preprocess else None,
    }


def texts_of(config: ScoringConfig, task: ReadsTexts) -> tuple[TextSource, ...]:
    """Returns where the task's texts come from.

    Raises:
        ConfigError: a second text is given that the task does not read, or is missing.
    """
    shown = f"task={config.task.name!r}"
    if config.text_pair_col is not None and task.pairs == "never":
        raise ConfigError(
            f"text_pair_col={config.text_pair_col!r} with {shown}: the task reads one text; drop "
            "the option, or put both columns into input_template"
        )
    if config.text_pair_col is None and task.pairs == "required":
        raise ConfigError(f"{shown} reads two texts; name the second with --text-pair-col COLUMN")
    preprocess = Preprocess.of(config.preprocess)
    if config.input_template is not None:
        made_of: ColumnText | TemplateText = TemplateText(
            config.input_template, config.template.null
        )
        texts = [TextSource("input_template", made_of, preprocess)]
    else:
        made_of = ColumnText("input_col", str(config.input_col), task.takes_messages)
        texts = [TextSource("input_col", made_of, preprocess)]
    if config.text_pair_col is not None:
        pair = ColumnText("text_pair_col", config.text_pair_col)
        texts.append(TextSource("text_pair_col", pair))
    return tuple(texts)
