"""The backend `openvino`: the model as a graph that OpenVINO runs on the CPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.graphs import GraphRuntime, check_one_pass, graph_of, makes_graphs
from sparkinfer.models.checkpoint import Checkpoint, quiet_transformers
from sparkinfer.models.options import ModelOptions

_GRAPH = "model.xml"

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names of number formats. Source: its `ov::element::Type`."""


class OpenVinoBackend:
    """Runs the model's graph in OpenVINO."""

    name = "openvino"

    def problem(self) -> str | None:
        """Returns how to install the package if it is missing, else None."""
        if importlib.util.find_spec("openvino") is not None:
            return None
        return (
            "the package openvino is not installed; run pip install openvino (the extra "
            "[openvino]) on every node, or use --acceleration auto"
        )

    def check(self, options: ModelOptions) -> None:
        """Raises ConfigError for what is not made into a graph; see `Backend`."""
        check_one_pass(self.name, options)

    def warm_up(self) -> None:
        """Imports the package, and what reads a model's files."""
        quiet_transformers()
        _ = importlib.import_module("transformers").AutoTokenizer
        import_openvino()

    def ways(self, options: ModelOptions, dtype: str, device: str) -> list[Acceleration]:
        """Returns the one way, on CPUs."""
        is_able = makes_graphs(options, device) and dtype in _PRECISIONS
        return [Acceleration(self.name, dtype)] if is_able else []

    def load(self, checkpoint: Checkpoint, way: Acceleration) -> GraphRuntime:
        """Returns the model's graph, compiled for this machine.

        Its weights are kept in float32; the number format is that of its products.
        """
        export = graph_of(checkpoint, self.name, _trace)
        checkpoint.vocabulary = export.notes.vocabulary
        run = _Compiled(export.folder / _GRAPH, way.dtype)
        output = checkpoint.options.task.graph_output
        return GraphRuntime(export.notes.inputs, str(output), run)


class _Compiled:
    """A graph, run by as many threads as torch has in this process.

    Args:
        graph: its file.
        dtype: number format of its products.
    """

    def __init__(self, graph: Path, dtype: str) -> None:
        import torch

        settings = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # Otherwise every process of a host pins its threads to the host's first cores.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = _core().compile_model(graph, "CPU", settings)
        self._request: Any = compiled.create_infer_request()

    def __call__(self, inputs: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        results = self._request.infer(list(inputs.values()), share_inputs=True)
        found: npt.NDArray[np.float32] = results[0]
        return found


@cache
def _core() -> Any:
    """Returns what compiles graphs, one for the whole life of the process.

    Its plug-in for CPUs gives the thread that loads it a stack for signal handlers, and takes the
    memory back when it goes, in whatever thread that is: the next signal would end the process.
    """
    return import_openvino().Core()


def _trace(module: Any, inputs: Mapping[str, Any], folder: Path) -> None:
    openvino = import_openvino()
    graph = openvino.convert_model(module, example_input=tuple(inputs.values()))
    openvino.save_model(graph, folder / _GRAPH, compress_to_fp16=False)


def import_openvino() -> Any:
    """Returns the package, without the one by which it reports its use to its makers.

    Source: `openvino.tools.ovc.telemetry_utils`, which does without if it cannot be imported.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")
