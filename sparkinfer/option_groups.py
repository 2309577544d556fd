"""Groups of options, each of one part of a run; see `sparkinfer.config`."""

from __future__ import annotations

import codecs
import contextlib
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sparkinfer.validation import NOT_EMPTY, PATH, Options, above, at_least, between, read_by

LauncherName = Literal["auto", "horovod", "horovod_runner", "torch"]
ReaderName = Literal["auto", "petastorm", "pyarrow"]


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


def _functions(value: Any) -> Any:
    """Returns functions, or names of such: one, or several as a tuple."""
    found = value if isinstance(value, list | tuple) else (value,)
    if found and all(callable(one) or (isinstance(one, str) and one) for one in found):
        return tuple(found)
    raise ValueError("a function, a class, `package.module:name` of one, or a list of those")


def read_batch_size(value: Any) -> Any:
    """Returns a number of rows, or what is written for one.

    Raises:
        ValueError: it is neither; says what was expected.
    """
    if value in (None, "default", "auto"):
        return value
    with contextlib.suppress(TypeError):  # no whole number, of Python's or numpy's
        if not isinstance(value, bool) and operator.index(value) > 0:
            return operator.index(value)
    raise ValueError("a number of rows from 1, None, 'default' or 'auto'")


@dataclass(frozen=True, init=False)
class FunctionConfig(Options):
    """A function of the user's that makes rows of batches of rows, in place of a model."""

    SHORTHAND = "function"

    function: tuple[object, ...] = field(default=(), metadata=read_by(_functions))
    """A function or class, or `package.module:name` of one; several run one after the other, each
    but the last in a process of its own."""
    schema: str | None = None
    """The columns that it returns, such as `id bigint, label string`; None: inferred from the first
    rows."""
    input_cols: tuple[str, ...] = ()
    """Columns that it is given; none: all of the input."""
    batch_size: int | str | None = field(default=None, metadata=read_by(read_batch_size))
    """Rows of a batch; null: as many as a worker has at hand, up to 128 MiB; default: 1024; auto:
    the same, up to 16 MiB."""
    batch_format: Literal["default", "numpy", "pandas", "pyarrow"] = "default"
    """What it is given: a dict of numpy arrays (default, numpy), a DataFrame or an Arrow table."""
    zero_copy_batch: bool = True
    """Give it arrays that it cannot write into; if not, they are its own."""
    one_to_one: bool | None = None
    """Whether each row gives one row, so that a batch that fails may be halved until the rows that
    it fails over are alone; null: as it turns out."""
    num_cpus: float | None = field(default=None, metadata=above(0))
    """Cores that a worker needs; the more, the fewer run at once on a host."""
    max_errored_batches: int | None = field(default=None, metadata=at_least(0))
    """Batches that may fail over a row before this run stops; null: any number."""
    args: tuple[object, ...] = ()
    """Further arguments of each call."""
    kwargs: dict[str, object] = field(default_factory=dict)
    """Further arguments of each call, by name."""
    constructor_args: tuple[object, ...] = ()
    """Arguments with which a class is constructed, once in each worker."""
    constructor_kwargs: dict[str, object] = field(default_factory=dict)
    """The same, by name."""


@dataclass(frozen=True, init=False)
class ParallelConfig(Options):
    """How a model that is larger than one GPU is run; both need DeepSpeed, or vLLM."""

    tensor: int = field(default=1, metadata=at_least(1))
    """GPUs of one host that share each replica, its layers split among them; on CPUs, processes."""
    offload: Literal["none", "cpu"] = "none"
    """Where the weights wait for their turn: `cpu`, in the host's memory, one layer after the other
    being brought to the GPU (ZeRO-Inference)."""

    @property
    def is_asked(self) -> bool:
        """Whether a replica is more than one process's plain model."""
        return self.tensor > 1 or self.offload != "none"

    @property
    def shown(self) -> str:
        """What is asked for, as it is given."""
        return f"parallel.tensor={self.tensor}" if self.tensor > 1 else "parallel.offload=cpu"


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
    """Maximum rows of a chunk; None: by what the model runs on, rows and text counted. Larger
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
    """Such as `latin-1`; None: by a byte order mark, else UTF-8."""
    header: bool = True
    """Whether the first row holds the names; if not, they are `_c0`, `_c1`, ..."""
    null: str | None = None
    """Text that means null where it is not in quotes, besides no text at all."""


def _columns(value: Any) -> Any:
    """Returns names of columns, each once; on the command line, `a,b`."""
    found = value.split(",") if isinstance(value, str) else value
    are_names = isinstance(found, list | tuple) and all(isinstance(n, str) and n for n in found)
    if are_names and len(set(found)) == len(found):
        return tuple(found)
    raise ValueError("a list of names of columns, each once")


@dataclass(frozen=True, init=False)
class VectorsConfig(Options):
    """Where vectors go beside the output's files, or in place of them."""

    store: str | None = field(default=None, metadata=NOT_EMPTY)
    """A vector store and a collection or table in it: `chroma:FOLDER#collection` or
    `postgresql://user@host/database#table`; None: vectors go nowhere else."""
    key: str | None = field(default=None, metadata=NOT_EMPTY)
    """Column whose values are the ids in the store, each there once; None: a row's chunk and its
    place in that, which the output then has as a column `row_id`."""
    metadata: tuple[str, ...] = field(default=(), metadata=read_by(_columns))
    """Columns of the output that are kept beside each vector."""
    distance: Literal["cosine", "l2", "ip"] = "cosine"
    """How the store compares vectors: one minus the cosine, Euclidean, or the negative inner
    product."""
    batch_rows: int = field(default=1000, metadata=at_least(1))
    """Rows that are sent to the store at a time."""
    parquet: bool = True
    """Whether the output has its files as well; if not, its folder only says what is done."""
    model: str | None = field(default=None, metadata=NOT_EMPTY)
    """Which of several models makes the vectors; needed if more than one of them does."""


@dataclass(frozen=True, init=False)
class DeltaConfig(Options):
    """A Delta table to which finished chunks are appended."""

    table: str | None = field(default=None, metadata=PATH | NOT_EMPTY)
    """Folder of the table, created if it does not exist; None: there is none."""


@dataclass(frozen=True, init=False)
class TableConfig(Options):
    """A table of Spark's to which a finished output is written."""

    name: str | None = field(default=None, metadata=NOT_EMPTY)
    """`table`, `schema.table` or `catalog.schema.table`; None: there is none."""
    mode: Literal["append", "replace"] = "append"
    """Whether what the table holds stays; it is created if it does not exist."""


def _experiment(value: Any) -> Any:
    """Returns the name of an experiment, True for a notebook's own, None for none."""
    if value is None or isinstance(value, bool):
        return value or None
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError("the name of an experiment, or true for that of a notebook on Databricks")


@dataclass(frozen=True, init=False)
class MlflowConfig(Options):
    """A run in MLflow that says what was done."""

    SHORTHAND = "experiment"

    experiment: str | bool | None = field(default=None, metadata=read_by(_experiment))
    """Name of the experiment, which is made if it is not there; true: the notebook's, on
    Databricks; None: nothing goes to MLflow."""
    tracking_uri: str | None = field(default=None, metadata=NOT_EMPTY)
    """Server, database or folder; None: as the environment specifies."""
    run_name: str | None = field(default=None, metadata=NOT_EMPTY)
    """Name of the run there; None: MLflow finds one."""
    tags: dict[str, str] = field(default_factory=dict)
    """Further tags of the run there."""


@dataclass(frozen=True, init=False)
class GateConfig(Options):
    """How closely an accelerated model must match the plain one before it may score rows."""

    tolerance: float | None = field(default=None, metadata=above(0))
    """Largest allowed difference of a probability from float32; None: by the dtype."""

    measure: Literal["auto", "always", "never"] = "auto"
    """Whether the ways of running the model that pass are timed, and the fastest is taken: for long
    jobs, for each, or for none, which takes the first that passes."""

    remember: bool = True
    """Whether what the gate finds is kept in the cache folder of the node, and taken from there."""


@dataclass(frozen=True, init=False)
class TemplateConfig(Options):
    """How columns are put into `input_template`."""

    null: str | None = None
    """What replaces a null; None: a row with a null in any of the columns has no text."""


@dataclass(frozen=True, init=False)
class PreprocessConfig(Options):
    """A function of the user's that changes texts before they are tokenised."""

    SHORTHAND = "function"

    function: str | None = None
    """As `package.module:function`; it takes texts and returns as many."""
    batch_format: Literal["pandas", "pyarrow"] = "pandas"
    """Whether it is given a Series or an Arrow array."""
    version: str | None = None
    """Anything that identifies a version of what the function depends on; its own source is
    compared in any case."""


def _strings(value: Any) -> Any:
    """Returns strings of which none is empty; one alone may be given as it is."""
    found = [value] if isinstance(value, str) else value
    if isinstance(found, list | tuple) and all(isinstance(one, str) and one for one in found):
        return tuple(found)
    raise ValueError("a string or a list of strings, none of them empty")


@dataclass(frozen=True, init=False)
class GenerationConfig(Options):
    """How tasks that generate text do so; named as in transformers.

    What is not given is as the model's own files have it, and else as transformers has it.
    """

    max_new_tokens: int | None = field(default=None, metadata=at_least(1))
    """Maximum tokens to generate for a row; None: as the model's files say, else 256."""
    min_new_tokens: int | None = field(default=None, metadata=at_least(0))
    """Minimum tokens to generate before a text may end."""
    do_sample: bool | None = None
    """Draw each token by its probability, rather than take the most probable one."""
    temperature: float | None = field(default=None, metadata=above(0))
    """Divides the logits before a token is drawn."""
    top_k: int | None = field(default=None, metadata=at_least(0))
    """Draw among this many of the most probable tokens; 0: among all."""
    top_p: float | None = field(default=None, metadata=between(0, 1))
    """Draw among the most probable tokens that together have this much of the probability."""
    seed: int | None = field(default=None, metadata=at_least(0))
    """Of what is drawn; a prompt and a seed determine it. None: 0."""
    repetition_penalty: float | None = field(default=None, metadata=above(0))
    """Above 1, makes tokens less probable that occurred before."""
    no_repeat_ngram_size: int | None = field(default=None, metadata=at_least(0))
    """No sequence of this many tokens occurs twice; 0: any may."""
    num_beams: int | None = field(default=None, metadata=at_least(1))
    """Continuations that are followed at once; the best one is the result."""
    length_penalty: float | None = None
    """Above 0, makes long beams better, below 0 short ones."""
    early_stopping: bool | Literal["never"] | None = None
    """When a search with beams ends."""
    stop: tuple[str, ...] = field(default=(), metadata=read_by(_strings))
    """Texts at which generation ends; they do not belong to what is generated."""


DEFAULT_TASK = "text-classification"


@dataclass(frozen=True)
class TaskConfig:
    """What a model does, by its Hugging Face name, and the options of that.

    Attributes:
        name: of the task, as it was given.
        options: of the task, as they were given.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def read_task(value: Any) -> Any:
    """Returns a task that is given by its name, or by a mapping of its `name` and options."""
    if isinstance(value, TaskConfig):
        return value
    if isinstance(value, str) and value:
        return TaskConfig(value)
    name = value.get("name", DEFAULT_TASK) if isinstance(value, Mapping) else None
    if isinstance(name, str) and name:
        return TaskConfig(name, {str(key): one for key, one in value.items() if key != "name"})
    raise ValueError("the name of a task, or a mapping of its `name` and options")
