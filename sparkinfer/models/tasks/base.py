"""What a task is: which texts a model reads, which columns it adds, and how one becomes the other.

A task is one file next to this one and one line in `TASKS`. Its numbers are those of the Hugging
Face pipeline of the same name, computed for a whole batch at a time. The driver plans with a
`Task`; where the model's files are, it becomes a `ModelTask`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.metrics.base import Evaluation
from sparkinfer.models.encoded import Inputs
from sparkinfer.models.tokens import Encoder, PaddingSide
from sparkinfer.option_groups import GenerationConfig
from sparkinfer.validation import Options

ROW_FIELDS = (
    pa.field("n_tokens", pa.int32()),
    pa.field("truncated", pa.bool_()),
    pa.field("error", pa.string()),
)
"""What every task reports for a row: tokens fed to the model, whether the text was truncated, and
why it has no result (null if it has one)."""

METADATA_KEY = "sparkinfer"
"""Key in a scored column's metadata; holds the model's fingerprint and the labels in order."""

Tensors = Mapping[str, Any]
"""The padded tensors of a batch by name, int64 (sequences, longest): the model's inputs, and
anything else the task's `encode` keeps for `decode`."""

Head = Callable[[Mapping[str, Any], Tensors], Mapping[str, Any]]
"""Makes of a model's outputs, by name, those that leave the device."""

PLAIN = "one sequence for each input, as the tokenizer makes it"
"""The `encoding` of a task that does nothing else."""

Pairs = Literal["never", "optional", "required"]


class Runtime(Protocol):
    """A model that a backend has made ready to run.

    Attributes:
        module: the torch module, for tasks that run it in another way than forward; None where it
            is none.
    """

    @property
    def module(self) -> Any: ...  # noqa: D102

    def forward(self, tensors: Tensors, head: Head | None = None) -> Mapping[str, Any]:
        """Returns the model's outputs by name, as tensors on the CPU, for one padded batch.

        Args:
            tensors: of the batch; those that are no input of the model are left out.
            head: computes on the device what is returned in place of the outputs.
        """


@runtime_checkable
class AsynchronousRuntime(Runtime, Protocol):
    """A `Runtime` on a device that works while the host goes on.

    Attributes:
        launching: the same, whose outputs are still on the device and need not be computed yet: a
            task may only hand them on. What fails there may be raised later, by `copied`.
    """

    @property
    def launching(self) -> Runtime: ...  # noqa: D102

    def staged(self, tensors: Tensors) -> Tensors:
        """Returns a batch in memory from which the device takes it while the host goes on."""

    def copied(self, output: Any) -> Callable[[], Any]:
        """Has an output copied to the host; returns what waits for it, which may raise.

        Args:
            output: tensors, alone or in mappings and tuples.
        """


@runtime_checkable
class TaskRuntime(Protocol):
    """A model that a backend runs together with its task, in other processes or another library.

    Attributes:
        module: None: there is none in this process.
        batch_tokens: tokens, padding included, of a batch, where it makes its own of them; None:
            a batch is run as it is given.
    """

    @property
    def module(self) -> None: ...  # noqa: D102
    @property
    def batch_tokens(self) -> int | None: ...  # noqa: D102

    def score(self, tensors: Tensors, moved: Callable[[], None]) -> pa.RecordBatch:
        """Returns what the task decodes of one padded batch; see `ModelTask.decode`.

        Args:
            tensors: of the batch.
            moved: called as parts of a batch get done, where that takes long.
        """

    def try_out(self, tensors: Tensors) -> pa.RecordBatch:
        """Returns the numbers by which ways of running the model are compared."""


class ModelFiles(Protocol):
    """A model's folder."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def config(self) -> Any:
        """The model's configuration, of transformers."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, of transformers."""

    @property
    def num_texts(self) -> int:
        """Texts of each row that are fed to it: two for pairs."""


@dataclass(frozen=True, init=False)
class NoOptions(Options):
    """The options of a task that has none."""


@dataclass(frozen=True)
class Task(ABC):
    """What a model does, by its Hugging Face name, with its options; small and picklable.

    Attributes:
        options: of the task, an `options_class`.
        name: value of the option `task`.
        pipeline: name of the transformers pipeline that runs such models, in whatever version has
            one.
        auto_class: name of the transformers class that loads them.
        heads: how the names of the classes end whose weights do this; empty: those of any do.
        pairs: whether it reads a second text of each row.
        files: patterns of the model's files that matter beside those of every model.
        pair_files: likewise, where it reads two texts.
        unused_weights: patterns of weights that it does without, so that a model may lack them.
        evaluation: how its results are measured; None: they are not.
        graph_output: the one output of one forward pass that it takes, by its name in transformers;
            None: it takes several, or other passes.
        options_class: its options, which are given as `task.NAME`.
    """

    options: Any

    name: ClassVar[str]
    pipeline: ClassVar[str]
    auto_class: ClassVar[str]
    heads: ClassVar[tuple[str, ...]] = ()
    pairs: ClassVar[Pairs] = "never"
    files: ClassVar[tuple[str, ...]] = ()
    pair_files: ClassVar[tuple[str, ...]] = ()
    unused_weights: ClassVar[tuple[str, ...]] = ()
    evaluation: ClassVar[Evaluation | None] = None
    graph_output: ClassVar[str | None] = None
    options_class: ClassVar[type[Options]] = NoOptions

    @classmethod
    def of_options(cls, options: Any, generation: GenerationConfig, name: str) -> Task:
        """Returns the task with its options.

        Args:
            options: an `options_class`.
            generation: how it generates text.
            name: by which it was asked for.

        Raises:
            ConfigError: it generates no text, and options say how.
        """
        if generation.given:
            raise ConfigError(
                f"generation.{min(generation.given)} with task={name!r}: the task generates no "
                "text; drop the option, or give task=text-generation"
            )
        return cls(options)

    @property
    @abstractmethod
    def fields(self) -> tuple[pa.Field, ...]:
        """Columns that it adds to a row, besides `ROW_FIELDS`."""

    @property
    def takes_messages(self) -> bool:
        """Whether a text may be a list of messages; see `text_sources.Messages`."""
        return False

    @abstractmethod
    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task as a model does it.

        It may set the tokenizer up, which is this model's own.

        Raises:
            ModelLoadError: the model does not do it, or its files do not say how.
            ConfigError: an option does not fit the model.
        """

    def class_of(self, model_config: Any) -> str:
        """Returns the name of the transformers class that loads a model of this configuration."""
        return self.auto_class

    def check(self) -> None:  # noqa: B027
        """Raises ConfigError for options that are valid alone but not together."""

    def settings(self) -> dict[str, Any]:
        """Returns the options that determine the output, by name, as JSON values."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in self._values().items()}
        return {f"task.{name}": value for name, value in values.items()}

    def _values(self) -> dict[str, Any]:
        return asdict(self.options)


class ModelTask(ABC):
    """A task as one model does it, where the model's files are.

    Attributes:
        task: the task.
        labels: names of what the model may predict, in the order of their ids; empty if there are
            none.
        resolved: what the options, and the files in place of those that are not given, come to for
            this model, as JSON values; a run goes on only where it is the same.
        most_tokens: tokens at which the task itself cuts texts; None: it has no limit of its own.
        added_bytes: an upper bound of the bytes that the task adds to each text.
        made_tokens: tokens that the model makes of each sequence; they count as its own where
            batches are planned.
        appended_tokens: those of them that the model sees behind the sequence itself: it must have
            positions for both.
        padding_side: the one side on which sequences may be padded; None: the gate finds it.
        encoding: what `encode` does. Two models with the same, the same tokenizer and the same
            texts share its result; None: nobody else's is the same.
    """

    labels: tuple[str, ...] = ()
    resolved: Mapping[str, Any] = MappingProxyType({})
    most_tokens: int | None = None
    added_bytes: int = 0
    made_tokens: int = 0
    appended_tokens: int = 0
    padding_side: PaddingSide | None = None
    encoding: str | None = None

    def __init__(self, task: Task) -> None:
        self.task = task
        self.schema = pa.schema(task.fields)

    def check_limit(self, max_length: int) -> None:  # noqa: B027
        """Raises ConfigError if sequences of at most so many tokens cannot hold what they must."""

    def longest_input(self, limit: int) -> int:
        """Returns the tokens of the longest input of a model that sees at most `limit` tokens.

        Raises:
            ConfigError: the options leave no room for an input.
        """
        return limit

    @abstractmethod
    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the token ids of some inputs.

        Args:
            encoder: the model's tokenizer.
            columns: the task's texts, each column with one text per input.
        """

    def encode_probes(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        """Returns the texts on which the model is tried as inputs; see `encode`.

        Whatever the task does with texts that are too long, here they are cut.
        """
        return self.encode(encoder, columns)

    @abstractmethod
    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        """Returns the model's output for a batch, from one forward pass or many."""

    @abstractmethod
    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        """Returns one row per sequence of a batch, in its order.

        Args:
            output: what `run` returned.
            tensors: of the batch.

        Returns:
            Whatever `join` takes; a row is null in all columns if its output is not finite.
        """

    def join(
        self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64], kept: pa.Table
    ) -> pa.RecordBatch:
        """Returns one row per input, which may be several sequences, with the task's columns.

        Args:
            decoded: one row per sequence, those of an input one after the other.
            starts: the first sequence of each input, int64 (inputs,).
            kept: what `encode` kept of each input; see `Inputs`.
        """
        return decoded

    def try_out(self, runtime: Runtime, tensors: Tensors) -> pa.RecordBatch:
        """Returns the numbers by which ways of running the model are compared, for a batch.

        One row per sequence; by default the decoded output.
        """
        return self.decode(self.run(runtime, tensors), tensors)

    def difference(self, expected: pa.RecordBatch, found: pa.RecordBatch) -> float:
        """Returns how far what `try_out` returned is from what it should be; NaN if it is null.

        A number is compared relative to its size if that exceeds `unit`.
        """
        wanted, values = numbers_of(expected), numbers_of(found)
        if wanted.shape != values.shape:
            return float("nan")
        scale: npt.NDArray[np.float32] = np.maximum(np.abs(wanted), self.unit(wanted))
        return float(np.max(np.abs(values - wanted) / scale, initial=0.0))

    def unit(self, wanted: npt.NDArray[np.float32]) -> float:
        """Returns the difference of two numbers that counts as 1 where both are small.

        Args:
            wanted: what the numbers should be, float32 (numbers,).
        """
        return 1.0


def numbers_of(rows: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """Returns the numbers with a fraction of all columns, one column after the other, float32."""
    found = [np.zeros(0, np.float32)]
    for column in rows.columns:
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = column.flatten()
        if pa.types.is_floating(column.type):
            found.append(column.drop_null().to_numpy(zero_copy_only=False))
    numbers: npt.NDArray[np.float32] = np.concatenate(found)
    return numbers


def scored_schema(
    task: Task, prefix: str = "", metadata: dict[str, str] | None = None
) -> pa.Schema:
    """Returns the columns that scoring adds to a row, with the prefix before each name."""
    return pa.schema(
        [
            field.with_name(prefix + field.name).with_metadata(metadata)
            for field in (*task.fields, *ROW_FIELDS)
        ]
    )


def column_metadata(fingerprint: str, labels: Sequence[str]) -> dict[str, str]:
    """Returns the metadata by which each scored column names the model that made it."""
    return {METADATA_KEY: json.dumps({"model_fingerprint": fingerprint, "labels": list(labels)})}


def float_lists(values: npt.NDArray[np.float32]) -> pa.ListArray:
    """Returns a float32 (rows, width) array as one list per row, without a Python loop."""
    rows, width = values.shape
    offsets = np.arange(0, (rows + 1) * width, width, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def without_rows(decoded: pa.RecordBatch, unusable: npt.NDArray[np.bool_]) -> pa.RecordBatch:
    """Returns decoded rows, null in all columns where they are unusable."""
    if not unusable.any():
        return decoded
    return decoded.take(pa.array(np.arange(decoded.num_rows), mask=unusable))
