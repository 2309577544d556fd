"""The options that concern one model: flat ones of a run, or a section of `models`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown
from sparkinfer.option_groups import (
    DEFAULT_TASK,
    BatchingConfig,
    DeepSpeedConfig,
    GateConfig,
    GenerationConfig,
    PreprocessConfig,
    TaskConfig,
    TemplateConfig,
    VectorsConfig,
    read_task,
)
from sparkinfer.validation import NOT_EMPTY, PATH, Options, at_least, read_by

DTypeName = Literal["auto", "float32", "bfloat16", "float16", "int8"]

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""What a model among several may be called."""


@dataclass(frozen=True, init=False)
class ModelSection(Options):
    """What concerns one model; what a section does not give is as the flat options say."""

    SHORTHAND = "model"

    model: str | None = field(default=None, metadata=PATH | NOT_EMPTY)
    """Hub id, folder, `models:/` or `runs:/` URI, or a remote folder."""
    input_col: str | None = field(default=None, metadata=NOT_EMPTY)
    """Column that holds the text."""
    text_pair_col: str | None = field(default=None, metadata=NOT_EMPTY)
    """Column with a second text, for tasks on pairs: the other text, or a question's context."""
    input_template: str | None = field(default=None, metadata=NOT_EMPTY)
    """The text, made of several columns, such as `"{title}\\n\\n{body}"`; in place of
    `input_col`. `{{` and `}}` are braces."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    task: TaskConfig = field(default=TaskConfig(DEFAULT_TASK), metadata=read_by(read_task))
    """What the model does, by its Hugging Face name; its options are `task.NAME`."""

    label_col: str | None = None
    """Column with the true label (name, number in the name, or id); adds metrics to the result."""
    metrics: tuple[str, ...] = ()
    """Further metrics, each a class as `package.module:Name`; see `sparkinfer.metrics.base`."""
    output_prefix: str = ""
    """Put before the name of every scored column; of a model among several, by default its name
    with an underscore."""

    acceleration: str = "auto"
    """What wraps the model."""
    dtype: DTypeName = "auto"
    """Number format of the weights; auto: the fastest that the device computes natively. int8: by
    OpenVINO on CPUs, never by itself."""
    max_length: int | None = field(default=None, metadata=at_least(2))
    """Longer texts are truncated to this many tokens; None: the model's own limit."""

    batching: BatchingConfig = BatchingConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    gate: GateConfig = GateConfig()
    generation: GenerationConfig = GenerationConfig()
    template: TemplateConfig = TemplateConfig()
    preprocess: PreprocessConfig = PreprocessConfig()


def options_of_section(flat: Mapping[str, Any], name: str, section: ModelSection) -> dict[str, Any]:
    """Returns the options of a run with this one model of several.

    Args:
        flat: the options of the run, by name.
        name: of the model.
        section: what is given for it alone. A text that it names replaces that of the run.
    """
    values = {
        **flat,
        "models": {},
        "vectors": VectorsConfig(),
        "output_prefix": flat["output_prefix"] or f"{name}_",
    }
    given = section.given_values()
    for text, other in (("input_col", "input_template"), ("input_template", "input_col")):
        if given.get(text) is not None and other not in given:
            values[other] = None
    for option, value in given.items():
        values[option] = _joined(flat[option], value)
    if values["input_template"] is None and "template" not in given:
        values["template"] = TemplateConfig()
    return values


def _joined(flat: Any, given: Any) -> Any:
    """Returns a value of a section; of a group, with what only the run's has."""
    if not isinstance(given, Options):
        return given
    return type(given)(**{**flat.given_values(), **given.given_values()})


def read_models(given: Sequence[str]) -> dict[str, Any]:
    """Returns the options that the values of `--model` stand for.

    What precedes the first = is a name if it looks like one; a path that begins so is given as
    ./PATH.

    Raises:
        ConfigError: a name is given twice, or several models have none.
    """
    pairs = [one.partition("=") for one in given]
    named = [(name, path) for name, is_there, path in pairs if is_there and _is_name(name)]
    plain = [
        one
        for one, (name, is_there, _) in zip(given, pairs, strict=True)
        if not is_there or not _is_name(name)
    ]
    repeated = [name for name, times in Counter(name for name, _ in named).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"--model {shown(repeated[0])}=...: the name is given to two models; give each its own"
        )
    if len(plain) > 1:
        raise ConfigError(
            f"--model {shown(plain[0])} and --model {shown(plain[1])}: give each of several models "
            "a name, as --model NAME=PATH"
        )
    return {"model": plain[0] if plain else None, **({"models": dict(named)} if named else {})}


def _is_name(text: str) -> bool:
    return not text or MODEL_NAME.fullmatch(text) is not None
