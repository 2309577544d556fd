"""The backend `onnxruntime`: the model as a graph that ONNX Runtime runs on the CPU, in float32."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.graphs import GraphRuntime, check_one_pass, graph_of, makes_graphs
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.options import ModelOptions

_GRAPH = "model.onnx"

_OPSET = 17
"""Of ONNX: the newest that torch writes by tracing without the package onnxscript."""


class OnnxRuntimeBackend:
    """Runs the model's graph in ONNX Runtime."""

    name = "onnxruntime"

    def problem(self) -> str | None:
        """Returns how to install the packages if one is missing, else None."""
        missing = [one for one in ("onnxruntime", "onnx") if importlib.util.find_spec(one) is None]
        if not missing:
            return None
        return (
            f"the package {missing[0]} is not installed; run pip install onnxruntime onnx (the "
            "extra [onnxruntime]) on every node, or use --acceleration auto"
        )

    def check(self, options: ModelOptions) -> None:
        """Raises ConfigError for what is not made into a graph; see `Backend`."""
        check_one_pass(self.name, options)

    def warm_up(self) -> None:
        """Imports the package."""
        importlib.import_module("onnxruntime")

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        """Returns the one way, on CPUs, where it has no products in half precision."""
        is_able = makes_graphs(options, device) and dtype == "float32"
        return [Acceleration(self.name, dtype)] if is_able else []

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> GraphRuntime:
        """Returns the model's graph, prepared for this machine."""
        export = graph_of(checkpoint, [self.name], _trace)
        checkpoint.vocabulary = export.notes.vocabulary
        output = checkpoint.options.task.graph_output
        return GraphRuntime(export.notes.inputs, str(output), _Session(export.folder / _GRAPH))


class _Session:
    """A graph, run by as many threads as torch has in this process.

    Args:
        graph: its file.
    """

    def __init__(self, graph: Path) -> None:
        import torch

        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin for work take the core from the tokenizer beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, inputs: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self._session.run(None, dict(inputs))[0]
        return found


def _trace(module: Any, inputs: Mapping[str, Any], folder: Path) -> None:
    import torch

    names = list(inputs)
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        str(folder / _GRAPH),
        input_names=names,
        output_names=["output"],
        dynamic_axes={name: {0: "sequences", 1: "tokens"} for name in names},
        opset_version=_OPSET,
        **_by_tracing(),
    )


def _by_tracing() -> dict[str, bool]:
    """Returns the argument by which torch traces, where it would do otherwise."""
    import inspect

    import torch

    return {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
