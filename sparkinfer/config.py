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

from sparkinfer.contradictions import (
    refuse_beside_function,
    refuse_contradictions,
    refuse_contradictions_of_model,
    refuse_mlflow_without_experiment,
    refuse_names,
    refuse_one_prefix,
    refuse_vectors,
)
from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown
from sparkinfer.model_section import ModelSection, options_of_section
from sparkinfer.option_groups import (
    ChunksConfig,
    CsvConfig,
    DeltaConfig,
    FunctionConfig,
    HorovodConfig,
    LoadingConfig,
    MlflowConfig,
    ParallelConfig,
    PreprocessConfig,
    TableConfig,
    VectorsConfig,
)
from sparkinfer.redaction import remember_secrets
from sparkinfer.validation import NOT_SHOWN, PATH, Options, above, at_least, read_by
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
    dedupe: bool = False
    """Score each distinct input once over the whole input, of which a sorted copy is made; the
    output's rows are in its order."""
    carry_cols: tuple[str, ...] | None = None
    """Input columns to keep in the output; None: all of them."""

    engine: str = "pandas_udf"
    """What moves the rows: Spark (`pandas_udf`), ranks that read what Spark prepared (`horovod`),
    or processes of one machine, without Spark (`local`)."""
    num_workers: int | None = field(default=None, metadata=at_least(1))
    """Model replicas; None: one per GPU, else one per CPU slot (`local`: one)."""
    master: str | None = None
    """Spark master to start a session on, or a server of Spark Connect (`sc://host:port`); None: as
    the environment specifies."""
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

    price_per_hour: float | None = field(default=None, metadata=above(0))
    """What all machines of the run cost in an hour together, in any currency; with it, what rows
    cost is told. None: it is not known."""
    report: bool = True
    """Whether the output gets a page that shows what was done."""

    fn: FunctionConfig = FunctionConfig()
    loading: LoadingConfig = LoadingConfig()
    parallel: ParallelConfig = ParallelConfig()
    horovod: HorovodConfig = HorovodConfig()
    chunks: ChunksConfig = ChunksConfig()
    csv: CsvConfig = CsvConfig()
    vectors: VectorsConfig = VectorsConfig()
    delta: DeltaConfig = DeltaConfig()
    table: TableConfig = TableConfig()
    mlflow: MlflowConfig = MlflowConfig()

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        remember_secrets(self.spark_conf)
        refuse_contradictions(self)
        refuse_vectors(self)
        refuse_mlflow_without_experiment(self)
        if self.fn.given:
            refuse_beside_function(self)
        elif not self.models:
            refuse_contradictions_of_model(self)
        else:
            refuse_names(self)
            refuse_one_prefix(self.by_model)

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
    "mlflow": MlflowConfig.SHORTHAND,
}
"""Options that a value in place of a group sets."""


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
        if isinstance(inner, str | bool) and shorthand:
            inner = {shorthand: inner}
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigError(
                f"--set {shown('.'.join(keys))}: {shown('.'.join(keys[: depth + 1]))} is one "
                "value, not a group of options; leave out what follows the dot"
            )
        values[key] = dict(inner or {})
        values = values[key]
    values[keys[-1]] = value
