"""The configuration of a run: one frozen, validated object.

`ScoringConfig` is built from a YAML file, from keyword arguments, from dotted overrides
(`--set batching.max_batch_tokens=4096`) or from all three, the later ones taking precedence.
Anything unknown, ill-typed or contradictory raises `ConfigError` before a byte of input is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown
from sparkinfer.model_section import MODEL_NAME, ModelSection, options_of_section
from sparkinfer.option_groups import (
    ChunksConfig,
    CsvConfig,
    DeltaConfig,
    FunctionConfig,
    HorovodConfig,
    LoadingConfig,
    PreprocessConfig,
    TableConfig,
    VectorsConfig,
)
from sparkinfer.redaction import remember_secrets
from sparkinfer.validation import NOT_SHOWN, PATH, Options, at_least, read_by
from sparkinfer.yaml_text import YamlTextError, parse_yaml

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
class ScoringConfig(ModelSection):
    """Everything that defines one scoring run; what it has of a section is each section's default.

    Raises:
        ConfigError: an option is unknown, has the wrong type or contradicts another.
    """

    models: dict[str, ModelSection] = field(default_factory=dict)
    """Several models that score the same input, each by its name, as a path or a group of what
    concerns it alone; in place of `model`."""

    input: str | tuple[str, ...] | None = field(default=None, metadata=read_by(_paths))
    """What to score: the path of a file or folder, several of them, a pattern, a table's name or an
    SQL query; replaced by a DataFrame passed in Python."""
    input_format: InputFormat = "auto"
    """How the input is stored; auto: judged by its name, else by its first bytes."""
    input_version: int | None = field(default=None, metadata=at_least(0))
    """Version of a table, or of the Delta table in a folder; None: a table as it is."""
    output: str | None = field(default=None, metadata=PATH)
    """Folder for the scored Parquet files."""
    overwrite: bool = False
    """Replace what an earlier run wrote to the output."""
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
    stall_timeout_s: int | None = field(default=600, metadata=at_least(1))
    """Seconds after which a worker whose forward pass or tokenizer hangs is reported and ended, so
    that Spark retries its rows; None: never. Must be longer than a batch may take."""

    step_timeout_s: int | None = field(default=1800, metadata=at_least(1))
    """Seconds without a move after which fetching the model, trying it out in a worker or preparing
    the input is given up; None: never."""

    fn: FunctionConfig = FunctionConfig()
    loading: LoadingConfig = LoadingConfig()
    horovod: HorovodConfig = HorovodConfig()
    chunks: ChunksConfig = ChunksConfig()
    csv: CsvConfig = CsvConfig()
    vectors: VectorsConfig = VectorsConfig()
    delta: DeltaConfig = DeltaConfig()
    table: TableConfig = TableConfig()

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        remember_secrets(self.spark_conf)
        _refuse_contradictions(self)
        _refuse_vectors(self)
        if self.fn.given:
            _refuse_beside_function(self)
        elif not self.models:
            _refuse_contradictions_of_model(self)
        else:
            _refuse_names(self)
            _refuse_one_prefix(self.by_model)

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
            **values: options by name; None means not given. What the file says of a model beside
                what `models` says of it stays.

        Raises:
            ConfigError: a source cannot be read, or the merged options are not valid.
        """
        merged = _read_yaml(Path(file)) if file is not None else {}
        for name, section in (values.pop("models", None) or {}).items():
            for option, value in _given_in(section).items():
                _set(merged, ["models", name, option], value)
        merged.update({key: value for key, value in values.items() if value is not None})
        for override in overrides:
            _apply_override(merged, override)
        return cls(**merged)

    def replace(self, **changes: Any) -> ScoringConfig:
        """Returns a copy with some options changed, validated like a new one."""
        return ScoringConfig(**{**self.as_dict(), **changes})

    @property
    def by_model(self) -> dict[str, ScoringConfig]:
        """The options of each of several models by its name, each as of a run with it alone.

        Of a run with one model, its own, by an empty name.

        Raises:
            ConfigError: the options of one contradict each other.
        """
        if not self.models:
            return {"": self}
        return {name: self._of_section(name, section) for name, section in self.models.items()}

    def _of_section(self, name: str, section: ModelSection) -> ScoringConfig:
        try:
            return ScoringConfig(**options_of_section(self.as_dict(), name, section))
        except ConfigError as error:
            raise ConfigError(f"models.{name}: {error.message}") from None


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


_SHORTHANDS = {
    "task": "name",
    "preprocess": PreprocessConfig.SHORTHAND,
    "fn": FunctionConfig.SHORTHAND,
}
"""Options that a value in place of a group stands for."""


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Sets the option that `a.b=value` or `models.NAME.a.b=value` names, in place."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        name = shown(re.split(r"[\s:]", override, maxsplit=1)[0])
        raise ConfigError(f"--set {name}: expected KEY=VALUE, such as batching.window_rows=64")
    if not text.strip() and not key.startswith("spark_conf."):
        raise ConfigError(
            f"--set {shown(key)}: there is no value; write {key}=null for none, and '{key}=\"\"' "
            "for an empty text, with both kinds of quotes"
        )
    try:
        value = parse_yaml(text)
    except YamlTextError:
        value = text
    is_bare = isinstance(value, str) and value == text.strip()
    if is_bare or key.startswith("spark_conf."):
        value = text  # a bare text with the spaces around it, which YAML takes off
    _set(values, key.split(".", 3 if key.startswith("models.") else 1), value)


def _given_in(section: Any) -> Mapping[str, Any]:
    """Returns the options of a section that is given as a path, a mapping or a group."""
    if isinstance(section, Options):
        return section.given_values()
    return section if isinstance(section, Mapping) else {ModelSection.SHORTHAND: section}


def _set(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Sets an option in groups within groups, which are made as needed."""
    for depth, key in enumerate(keys[:-1]):
        inner = values.get(key)
        if isinstance(inner, Options):
            inner = inner.given_values()
        is_section = depth == 1 and keys[0] == "models"
        shorthand = ModelSection.SHORTHAND if is_section else _SHORTHANDS.get(key)
        if isinstance(inner, str) and shorthand:
            inner = {shorthand: inner}
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigError(
                f"--set {shown('.'.join(keys))}: {shown('.'.join(keys[: depth + 1]))} is one "
                "value, not a group of options; leave out what follows the dot"
            )
        values[key] = dict(inner or {})
        values = values[key]
    values[keys[-1]] = value


def _refuse_names(config: ScoringConfig) -> None:
    """Raises ConfigError unless each of several models has a name, and only there."""
    if config.model is not None:
        raise ConfigError(
            f"model={shown(config.model)} with models {', '.join(map(shown, config.models))}: give "
            "each of several models a name, as --model NAME=PATH or in `models`, or only one model"
        )
    for name, section in config.models.items():
        if not MODEL_NAME.fullmatch(name):
            raise ConfigError(
                f"models: the name {shown(name)} of a model: expected letters, digits, - and _; "
                "give it as --model NAME=PATH, and a path with = in it as ./PATH"
            )
        if section.model is None:
            raise ConfigError(
                f"option 'models.{name}.model' is required; give --model {name}=PATH, or it in the "
                "section"
            )


def _refuse_one_prefix(by_model: Mapping[str, ScoringConfig]) -> None:
    """Raises ConfigError if the columns of two models would have the same names."""
    of_prefix: dict[str, str] = {}
    for name, config in by_model.items():
        prefix = config.output_prefix.lower()  # Spark's names are case-insensitive
        if prefix in of_prefix:
            raise ConfigError(
                f"models.{of_prefix[prefix]} and models.{name} have one output_prefix, "
                f"{config.output_prefix!r}: their columns would have the same names; give each its "
                "own, or none to have NAME_"
            )
        of_prefix[prefix] = name


def _refuse_contradictions_of_model(config: ScoringConfig) -> None:
    """Raises ConfigError for options of one model that are valid alone but not together."""
    if config.model is None:
        raise ConfigError(
            "option 'model' is required; give --model or model=..., or a function as --fn or fn=..."
        )
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
    if config.label_col is not None and config.label_col == config.input_col:
        raise ConfigError(
            f"label_col={config.label_col!r} is also the input column; name the column that holds "
            "the true labels"
        )
    kept = config.carry_cols
    if config.label_col and kept is not None and config.label_col not in kept:
        raise ConfigError(
            f"label_col={config.label_col!r} is not in carry_cols={list(kept)}: metrics are "
            "computed from the output; add it there"
        )


def _refuse_contradictions(config: ScoringConfig) -> None:
    """Raises ConfigError for options of a run that are valid alone but not together."""
    if config.engine == "local":
        _refuse_spark_options(config)
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
    _refuse_table(config)
    if config.input_version is not None and config.incremental:
        raise ConfigError(
            f"input_version={config.input_version} with incremental=true: a version has no new "
            "rows; drop one of them"
        )
    kept = config.carry_cols
    if kept is not None and (not kept or len(set(kept)) < len(kept)):
        raise ConfigError(
            f"carry_cols={list(kept)}: expected at least one column, each named once; leave it out "
            "to keep all"
        )


def _refuse_table(config: ScoringConfig) -> None:
    """Raises ConfigError for a table that the output cannot be written to."""
    shown_name = f"table.name={shown(config.table.name)}"
    if config.table.name is None:
        return
    if config.retry_errors and config.table.mode == "append":
        raise ConfigError(
            f"retry_errors=true with {shown_name}: an append cannot replace the rows that were "
            "appended with their errors; give --set table.mode=replace, or drop one of them"
        )
    if not config.vectors.parquet:
        raise ConfigError(
            f"vectors.parquet=false with {shown_name}: the table is written from the output's "
            "files; drop one of them"
        )


def _refuse_vectors(config: ScoringConfig) -> None:
    """Raises ConfigError for options of a vector store that do not fit the others."""
    vectors = config.vectors
    if vectors.store is None:
        if vectors.given - {"store"}:
            raise ConfigError(
                f"vectors.{min(vectors.given)} without vectors.store: name the store with "
                "--vector-store, or drop the option"
            )
        return
    if config.retry_errors and not vectors.parquet:
        raise ConfigError(
            "retry_errors=true with vectors.parquet=false: rows are tried again from the output's "
            "files; drop one of them"
        )
    if vectors.model is not None and vectors.model not in config.models:
        raise ConfigError(
            f"vectors.model={shown(vectors.model)}: expected one of "
            f"{', '.join(map(shown, config.models)) or 'several models, and there is one'}"
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


MODEL_DEFAULTS = {n: v for n, v in ModelSection().as_dict().items() if n != "output_prefix"}
"""Options that say something of a model, which a function has no use for."""


def _refuse_beside_function(config: ScoringConfig) -> None:
    """Raises ConfigError for options that have no meaning for a function."""
    if not config.fn.function:
        raise ConfigError(
            f"fn.{min(config.fn.given)} without fn.function: name the function, as --fn "
            "package.module:name"
        )
    elsewhere = {"vectors": VectorsConfig(), "delta": DeltaConfig(), "table": TableConfig()}
    refused = {**MODEL_DEFAULTS, **elsewhere, "models": {}, "carry_cols": None}
    beside = [name for name, default in refused.items() if getattr(config, name) != default]
    if beside:
        raise ConfigError(
            f"{beside[0]} with fn={shown(config.fn.function[0])}: a function is given the rows as "
            "they are, and what it returns is the output; leave the option out, or use fn.args, "
            "fn.input_cols and the function itself"
        )
    given = config.fn.given & {"args", "kwargs", "constructor_args", "constructor_kwargs"}
    if given and len(config.fn.function) > 1:
        raise ConfigError(
            f"fn.{min(given)} with {len(config.fn.function)} functions: whose they are is not "
            "clear; give functools.partial objects or classes without arguments"
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
