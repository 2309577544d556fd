"""The configuration of a run: one frozen, validated object.

`ScoringConfig` is built from a YAML file, from keyword arguments, from dotted overrides
(`--set batching.max_batch_tokens=4096`) or from all three, the later ones taking precedence.
Anything unknown, ill-typed or contradictory raises `ConfigError` before a byte of input is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown
from sparkinfer.option_groups import (
    DEFAULT_TASK,
    BatchingConfig,
    ChunksConfig,
    CsvConfig,
    DeepSpeedConfig,
    GateConfig,
    GenerationConfig,
    HorovodConfig,
    LoadingConfig,
    PreprocessConfig,
    TaskConfig,
    TemplateConfig,
    read_task,
)
from sparkinfer.redaction import remember_secrets
from sparkinfer.validation import NOT_EMPTY, NOT_SHOWN, PATH, Options, at_least, read_by
from sparkinfer.yaml_text import YamlTextError, parse_yaml

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cpu", "cuda"]
InputFormat = Literal["auto", "parquet", "csv", "json", "table", "query"]
DisplayMode = Literal["auto", "bar", "lines", "json", "none"]


def _error_rows(value: Any) -> Any:
    """Returns a number of rows as text; raises for text that is neither a number nor a share."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if isinstance(value, str) and re.fullmatch(r"\d+|(100|\d{1,2})(\.\d+)?%", value):
        return value
    if value is None:
        return value
    raise ValueError("a number of rows or a share of them, such as 100 or 1%")


def _paths(value: Any) -> Any:
    """Returns paths as strings: one, or several as a tuple."""
    if isinstance(value, list | tuple):
        return tuple(os.fspath(one) if isinstance(one, Path) else one for one in value)
    return os.fspath(value) if isinstance(value, Path) else value


C = TypeVar("C", bound="ScoringConfig")


@dataclass(frozen=True, init=False)
class ScoringConfig(Options):
    """Everything that defines one scoring run.

    Raises:
        ConfigError: an option is unknown, has the wrong type or contradicts another.
    """

    model: str = field(metadata=PATH | NOT_EMPTY)
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

    input: str | tuple[str, ...] | None = field(default=None, metadata=read_by(_paths))
    """What to score: the path of a file or folder, several of them, a pattern, a table's name or an
    SQL query; replaced by a DataFrame passed in Python."""
    input_format: InputFormat = "auto"
    """How the input is stored; auto: judged by its name, else by its first bytes."""
    output: str | None = field(default=None, metadata=PATH)
    """Folder for the scored Parquet files."""
    overwrite: bool = False
    """Replace what an earlier run wrote to the output."""
    label_col: str | None = None
    """Column with the true label (name, number in the name, or id); adds metrics to the result."""
    metrics: tuple[str, ...] = ()
    """Further metrics, each a class as `package.module:Name`; see `sparkinfer.metrics.base`."""
    max_error_rows: str | None = field(default=None, metadata=read_by(_error_rows))
    """Rows with an error beyond which the run stops, a number or a share of the input such as `1%`;
    None: no limit."""
    incremental: bool = False
    """Score only what is new in the input since the last run on this output: new files, or new rows
    of a table."""
    incremental_col: str | None = None
    """Column of a table whose values grow with each new row, by which these are recognised."""
    retry_errors: bool = False
    """Rescore earlier runs' rows with an error, before scoring what is left."""
    carry_cols: tuple[str, ...] | None = None
    """Input columns to keep in the output; None: all of them."""
    output_prefix: str = ""
    """Put before the name of every scored column."""

    engine: str = "pandas_udf"
    """What moves the rows: Spark (`pandas_udf`), ranks that read what Spark prepared (`horovod`),
    or one process without Spark (`local`)."""
    num_workers: int | None = field(default=None, metadata=at_least(1))
    """Model replicas; None: one per GPU, else one per CPU slot."""
    master: str | None = None
    """Spark master to start a session on; None: as the environment specifies."""
    spark_conf: dict[str, str] = field(default_factory=dict, metadata=NOT_SHOWN)
    """Spark settings for a session that sparkinfer starts."""

    device: DeviceName = "auto"
    """Where the model runs; with `cuda`, a missing GPU is an error."""
    acceleration: str = "auto"
    """What wraps the model."""
    dtype: DTypeName = "auto"
    """Number format of the weights; auto: the fastest that the device computes natively."""
    max_length: int | None = field(default=None, metadata=at_least(2))
    """Longer texts are truncated to this many tokens; None: the model's own limit."""

    stall_timeout_s: int | None = field(default=600, metadata=at_least(1))
    """Seconds after which a worker whose forward pass or tokenizer hangs is reported and ended, so
    that Spark retries its rows; None: never. Must be longer than a batch may take."""

    step_timeout_s: int | None = field(default=1800, metadata=at_least(1))
    """Seconds without a move after which fetching the model, trying it out in a worker or preparing
    the input is given up; None: never."""

    batching: BatchingConfig = BatchingConfig()
    loading: LoadingConfig = LoadingConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    horovod: HorovodConfig = HorovodConfig()
    gate: GateConfig = GateConfig()
    chunks: ChunksConfig = ChunksConfig()
    csv: CsvConfig = CsvConfig()
    generation: GenerationConfig = GenerationConfig()
    template: TemplateConfig = TemplateConfig()
    preprocess: PreprocessConfig = PreprocessConfig()

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        remember_secrets(self.spark_conf)
        _refuse_contradictions(self)

    @classmethod
    def load(
        cls: type[C],
        file: str | Path | None = None,
        overrides: Iterable[str] = (),
        **values: Any,
    ) -> C:
        """Returns the configuration of a YAML file, dotted overrides and keyword arguments.

        Args:
            file: YAML file with a mapping of options, or None.
            overrides: `section.key=value` strings, the value in YAML notation.
            **values: options by name; None means not given.

        Raises:
            ConfigError: a source cannot be read, or the merged options are not valid.
        """
        merged = _read_yaml(Path(file)) if file is not None else {}
        merged.update({key: value for key, value in values.items() if value is not None})
        for override in overrides:
            _apply_override(merged, override)
        return cls(**merged)

    def replace(self, **changes: Any) -> ScoringConfig:
        """Returns a copy with some options changed, validated like a new one."""
        return ScoringConfig(**{**self.as_dict(), **changes})


def _read_yaml(path: Path) -> dict[str, Any]:
    shown_path = f"config file {shown(str(path))}"
    try:
        loaded = parse_yaml(path.read_text(encoding="utf-8"))
    except YamlTextError as error:
        raise ConfigError(f"{shown_path} is not valid YAML: {error}; correct the line") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"{shown_path} cannot be read ({reason}); give an existing YAML file"
        ) from None
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise ConfigError(
            f"{shown_path} holds a {type(loaded).__name__}, expected `option: value` lines with "
            "option names"
        )
    return dict(loaded)


_SHORTHANDS = {"task": "name", "preprocess": PreprocessConfig.SHORTHAND}
"""Options that a value in place of a group stands for."""


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Sets the option that `a.b=value` names, in place."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        name = shown(re.split(r"[\s:]", override, maxsplit=1)[0])
        raise ConfigError(f"--set {name}: expected KEY=VALUE, such as batching.window_rows=64")
    try:
        value = parse_yaml(text)
    except YamlTextError:
        value = text
    section, _, rest = key.partition(".")
    if not rest:
        values[section] = value
        return
    if section == "spark_conf":
        value = text
    inner = values.get(section)
    if isinstance(inner, Options):
        inner = inner.as_dict()
    if isinstance(inner, str) and section in _SHORTHANDS:
        inner = {_SHORTHANDS[section]: inner}
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(
            f"--set {shown(key)}: {shown(section)} is one value, not a group of options; leave out "
            "what follows the dot"
        )
    values[section] = {**(inner or {}), rest: value}


def _refuse_contradictions(config: ScoringConfig) -> None:
    """Raises ConfigError for options that are valid alone but not together."""
    if config.engine == "local":
        _refuse_spark_options(config)
    _refuse_texts(config)
    if config.acceleration == "none" and config.deepspeed.kernel_inject:
        raise ConfigError(
            "deepspeed.kernel_inject=true with acceleration='none': kernels need DeepSpeed; "
            "use acceleration='deepspeed' or drop the option"
        )
    if config.device == "cpu" and config.dtype == "float16":
        raise ConfigError(
            "dtype='float16' with device='cpu': CPUs compute float16 slowly or not at all; use "
            "dtype='bfloat16' or 'float32'"
        )
    if config.metrics and config.label_col is None:
        raise ConfigError(
            f"metrics={list(config.metrics)} without label_col: metrics compare with true labels; "
            "name the column that holds them"
        )
    if config.incremental and config.overwrite:
        raise ConfigError(
            "incremental=true with overwrite=true: one keeps what is there and the other replaces "
            "it; drop one of them"
        )
    if config.incremental_col is not None and not config.incremental:
        raise ConfigError(
            f"incremental_col={config.incremental_col!r} without incremental=true: the column "
            "serves to find new rows; give both or neither"
        )
    if config.retry_errors and config.overwrite:
        raise ConfigError(
            "retry_errors=true with overwrite=true: one repairs what is there and the other "
            "replaces it; drop one of them"
        )
    if config.label_col is not None and config.label_col == config.input_col:
        raise ConfigError(
            f"label_col={config.label_col!r} is also the input column; name the column that holds "
            "the true labels"
        )
    kept = config.carry_cols
    if kept is not None and (not kept or len(set(kept)) < len(kept)):
        raise ConfigError(
            f"carry_cols={list(kept)}: expected at least one column, each named once; leave it out "
            "to keep all"
        )
    if config.label_col and kept is not None and config.label_col not in kept:
        raise ConfigError(
            f"label_col={config.label_col!r} is not in carry_cols={list(kept)}: metrics are "
            "computed from the output; add it there"
        )


def _refuse_texts(config: ScoringConfig) -> None:
    """Raises ConfigError unless it is clear where the texts come from."""
    if config.input_col is None and config.input_template is None:
        raise ConfigError(
            "option 'input_col' is required; give --input-col COLUMN, or --input-template with the "
            "names of columns in braces"
        )
    if config.input_col is not None and config.input_template is not None:
        raise ConfigError(
            f"input_col={config.input_col!r} with input_template={config.input_template!r}: either "
            "is the text; give one of them"
        )
    if config.template.null is not None and config.input_template is None:
        raise ConfigError(
            f"template.null={config.template.null!r} without input_template: it stands for nulls "
            "in the template's columns; give both or neither"
        )
    if config.preprocess.function is None and config.preprocess.given:
        raise ConfigError(
            f"preprocess.{min(config.preprocess.given)} without preprocess.function: name the "
            "function as package.module:function, or drop the option"
        )


def _refuse_spark_options(config: ScoringConfig) -> None:
    given = {
        f"master={config.master!r}": config.master is not None,
        f"spark_conf with {shown(list(config.spark_conf))}": bool(config.spark_conf),
        f"num_workers={config.num_workers!r}": (config.num_workers or 1) > 1,
    }
    for what, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"{what} with engine='local': that engine is one process without Spark; drop the "
                "option or use engine='pandas_udf'"
            )
    if config.input_format in ("table", "query"):
        raise ConfigError(
            f"input_format={config.input_format!r} with engine='local': tables are read by Spark; "
            "give a path or use engine='pandas_udf'"
        )
