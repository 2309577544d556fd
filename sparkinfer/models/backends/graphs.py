"""What backends share that run a model as a graph, which is traced on a batch of texts.

A graph has the inputs that the tokenizer makes, and one output. What a trace of a batch takes for
constant may not be so for another one: the gate runs graphs on texts of several lengths, in a batch
and alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sparkinfer import __version__
from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.exports import Export, kept_export
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.tasks import TASKS
from sparkinfer.models.tasks.base import Head, Tensors
from sparkinfer.models.tokens import MODEL_INPUTS

EXAMPLE_TEXTS = ("A dull film.", "I would buy it again without thinking twice, and so would she.")
"""What is traced: a batch of more than one text, with padding."""

Trace = Callable[[Any, Mapping[str, Any], Path], None]
"""Writes a module's graph to a folder, given its inputs for a batch by name."""


class Run(Protocol):
    """Runs a graph."""

    def __call__(self, inputs: Mapping[str, npt.NDArray[np.int64]], /) -> npt.NDArray[np.float32]:
        """Returns the graph's output for a padded batch, an array of its own.

        Args:
            inputs: int64 (sequences, longest) by name.
        """


class GraphRuntime:
    """A model as a graph on the CPU; see `Runtime`.

    Args:
        inputs: names of the graph's inputs.
        output: the name that its output has in transformers.
        run: runs the graph.
    """

    module = None

    def __init__(self, inputs: tuple[str, ...], output: str, run: Run) -> None:
        self._inputs = inputs
        self._output = output
        self._run = run

    def forward(self, tensors: Tensors, head: Head | None = None) -> Mapping[str, Any]:
        """Returns the model's output by name; see `Runtime`."""
        import torch

        given = tuple(name for name in MODEL_INPUTS if name in tensors)
        if given != self._inputs:
            raise ValueError(f"inputs {given}, but the graph was made with {self._inputs}")
        found = self._run({name: tensors[name].numpy() for name in given})
        outputs = {self._output: torch.from_numpy(found)}
        return outputs if head is None else head(outputs, tensors)


def graph_tasks() -> list[str]:
    """Returns the names of the tasks that are one forward pass with one output."""
    return sorted({task.name for task in TASKS.values() if task.graph_output is not None})


def check_one_pass(name: str, options: ModelOptions) -> None:
    """Raises ConfigError for what is not one forward pass on one device.

    Args:
        name: of the backend.
        options: how the model is to be run.
    """
    if options.task.graph_output is None:
        raise ConfigError(
            f"acceleration={name!r} with task={options.task.name!r}: it runs one forward pass, for "
            f"{', '.join(graph_tasks())}; use --acceleration auto"
        )
    if options.parallel.is_asked:
        raise ConfigError(
            f"{options.parallel.shown} with acceleration={name!r}: that takes DeepSpeed or vLLM; "
            "use acceleration='deepspeed' or leave it out"
        )


def makes_graphs(options: ModelOptions, device: str) -> bool:
    """Returns whether a model's graph can be run there, as far as the options tell."""
    return is_one_pass(options) and device == "cpu"


def is_one_pass(options: ModelOptions) -> bool:
    """Returns whether a model is run in one forward pass with one output, on one device."""
    return options.task.graph_output is not None and not options.parallel.is_asked


def graph_of(checkpoint: Checkpoint, libraries: Sequence[str], trace: Trace) -> Export:
    """Returns a model's graph, kept on this node.

    Args:
        checkpoint: the model.
        libraries: distributions that make and read the graph, whose versions count.
        trace: makes it.

    Raises:
        ModelLoadError: the model keeps state between batches, which a graph does not have.
    """
    if checkpoint.layout.resets:
        raise ModelLoadError("its state is put back before each batch, and a graph has none")
    versions = {name: version(name) for name in (*libraries, "torch", "transformers")}
    key = {
        "model": checkpoint.fingerprint,
        "task": checkpoint.options.task.name,
        "output": checkpoint.options.task.graph_output,
        "versions": versions | {"sparkinfer": __version__},
    }
    loading = checkpoint.options.loading
    return kept_export(key, loading, lambda folder: _make(checkpoint, trace, folder))


def _make(checkpoint: Checkpoint, trace: Trace, folder: Path) -> tuple[tuple[str, ...], int | None]:
    import torch

    inputs = _example(checkpoint)
    module = _one_output(checkpoint.module(), tuple(inputs), checkpoint.options.task.graph_output)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is constant in a trace, which the gate tries
        trace(module, inputs, folder)
    return tuple(inputs), checkpoint.vocabulary


def _example(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the inputs for a batch of texts, int64 (2, longest) by name."""
    columns = [list(EXAMPLE_TEXTS)] * checkpoint.num_texts
    encoder = checkpoint.encoder
    encoded = checkpoint.task.encode_probes(encoder, columns).encoded
    tensors = encoder.collate(encoded, np.arange(len(encoded.n_tokens)))
    return {name: tensors[name] for name in MODEL_INPUTS if name in tensors}


def _one_output(module: Any, names: tuple[str, ...], output: str | None) -> Any:
    """Returns a module with positional inputs that returns one of the module's outputs.

    It is in evaluation mode, as the module is: exporting puts a module back into the mode in which
    it found the outer one, and in training mode there would be dropout.
    """
    import torch

    class OneOutput(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Any) -> Any:
            return self.inner(**dict(zip(names, inputs, strict=True)))[output]

    return OneOutput(module).eval()
