"""The configuration of a run: one frozen, validated object.

`ScoringConfig` is built from a YAML file, from keyword arguments, from dotted overrides
(`--set batching.max_batch_tokens=4096`) or from all three, the later ones taking precedence.
Anything unknown, ill-typed or contradictory raises `ConfigError` before a byte of input is read.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sparkinfer.exceptions import ConfigError
from sparkinfer.messages import shown
from sparkinfer.redaction import remember_secrets
from sparkinfer.validation import NOT_EMPTY, NOT_SHOWN, PATH, Options, above, at_least, read_by
from sparkinfer.yaml_text import YamlTextError, parse_yaml

LauncherName = Literal["auto", "horovod", "horovod_runner", "torch"]
ReaderName = Literal["auto", "petastorm", "pyarrow"]
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


def _one_character(value: Any) -> Any:
    """Returns a single character; a tab may be written as backslash and t."""
    found = "\t" if value == r"\t" else value
    if found is None or (isinstance(found, str) and len(found) == 1 and found not in "\r\n"):
        return found
    raise ValueError("one character, such as ';' or '\\t'")


def _quote(value: Any) -> Any:
    """Returns a single character, or nothing."""
    return value if value == "" else _one_character(value)


def _encoding(value: Any) -> Any:
    """Returns the name of an encoding of text that Python knows."""
    try:
        if value is not None:
            "".encode(value)  # refuses base64 and the like, which are not of text
        return value if value is None else codecs.lookup(value).name
    except (LookupError, TypeError, ValueError):
        raise ValueError("the name of an encoding, such as 'latin-1' or 'utf-16'") from None


def _paths(value: Any) -> Any:
    """Returns paths as strings: one, or several as a tuple."""
    if isinstance(value, list | tuple):
        return tuple(os.fspath(one) if isinstance(one, Path) else one for one in value)
    return os.fspath(value) if isinstance(value, Path) else value


@dataclass(frozen=True, init=False)
class BatchingConfig(Options):
    """Which rows go through the model together."""

    max_batch_tokens: int | None = field(default=None, metadata=at_least(1))
    """Maximum tokens in one forward pass, padding included; None: chosen by the device."""
    max_batch_rows: int = field(default=1024, metadata=at_least(1))
    """Maximum rows in one forward pass."""
    window_rows: int = field(default=8192, metadata=at_least(1))
    """Rows that are read ahead, sorted by length and batched together."""
    window_bytes: int = field(default=64 * 2**20, metadata=at_least(1))
    """Maximum bytes of text held by one window (a single row may exceed it)."""


@dataclass(frozen=True, init=False)
class LoadingConfig(Options):
    """What is allowed while a model is loaded, and where its files are kept."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    allow_pickle_weights: bool = False
    """Load `pytorch_model.bin`, a pickle that can run code, if no safetensors file exists."""
    cache_dir: str | None = field(default=None, metadata=PATH)
    """Folder on each node for fetched models; None: the user's cache folder."""


@dataclass(frozen=True, init=False)
class DeepSpeedConfig(Options):
    """How `deepspeed.init_inference` is called."""

    kernel_inject: bool = False
    """Try DeepSpeed's own kernels first; they are correct for few architectures."""


@dataclass(frozen=True, init=False)
class HorovodConfig(Options):
    """How the `horovod` engine starts its ranks and what they read with."""

    launcher: LauncherName = "auto"
    """What starts the ranks: `horovod.spark`, Databricks' `HorovodRunner`, or pyspark's
    `TorchDistributor`; auto: the first that is installed, on Databricks the second."""
    reader: ReaderName = "auto"
    """What reads the prepared rows; auto: Petastorm if it is installed and works, except on object
    stores."""
    start_timeout_s: int = field(default=300, metadata=at_least(1))
    """Seconds within which all ranks must be running."""


@dataclass(frozen=True, init=False)
class ChunksConfig(Options):
    """How the input is cut into chunks, the unit of commit and resume."""

    target_rows: int | None = field(default=None, metadata=at_least(1))
    """Most rows of a chunk; None: by what the model runs on, rows and text counted. Larger
    row groups are cut."""


@dataclass(frozen=True, init=False)
class CsvConfig(Options):
    """How CSV files are written; all their columns are read as text."""

    delimiter: str | None = field(default=None, metadata=read_by(_one_character))
    """Character between fields; None: a tab in files named `.tsv`, else a comma."""
    quote: str = field(default='"', metadata=read_by(_quote))
    """Character around fields that hold the delimiter, line breaks or itself, doubled; empty: no
    character quotes."""
    escape: str | None = field(default=None, metadata=read_by(_one_character))
    """Character that, before a quote or itself within quotes, makes that part of the field, as in
    files that Spark writes (a backslash); None: quotes are doubled."""
    encoding: str | None = field(default=None, metadata=read_by(_encoding))
    """Such as `latin-1`; None: told by a byte order mark, else UTF-8."""
    header: bool = True
    """Whether the first row holds the names; if not, they are `_c0`, `_c1`, ..."""
    null: str | None = None
    """Text that stands for null where it is not in quotes, besides no text at all."""


@dataclass(frozen=True, init=False)
class GateConfig(Options):
    """How closely an accelerated model must match the plain one before it may score rows."""

    tolerance: float | None = field(default=None, metadata=above(0))
    """Largest allowed difference of a probability from float32; None: by the dtype."""


C = TypeVar("C", bound="ScoringConfig")


@dataclass(frozen=True, init=False)
class ScoringConfig(Options):
    """Everything that defines one scoring run.

    Raises:
        ConfigError: an option is unknown, has the wrong type or contradicts another.
    """

    model: str = field(metadata=PATH | NOT_EMPTY)
    """Hub id, folder, `models:/` or `runs:/` URI, or a remote folder."""
    input_col: str = field(metadata=NOT_EMPTY)
    """Column that holds the text."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    task: str = "text-classification"
    """What the model does, by its Hugging Face name."""

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
