"""The backend `openvino`: the model as a graph that OpenVINO runs on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.exceptions import ConfigError, EngineUnavailableError
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.backends.graphs import (
    GraphRuntime,
    check_one_pass,
    graph_of,
    graph_tasks,
    is_one_pass,
    makes_graphs,
)
from sparkinfer.models.checkpoint import Checkpoint, quiet_transformers
from sparkinfer.models.options import ModelOptions

_GRAPH = "model.xml"

INT8 = "int8"

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", INT8: "f32"}
"""OpenVINO's names of number formats; of int8, that of all but the products of weights.
Source: its `ov::element::Type`."""

_GROUP = 32
"""Numbers of a token that have one scale in int8. No scale is of several tokens: a text's numbers
would then depend on those of the texts beside it, not just on the shape of the batch."""


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

        Its weights are kept in float32, or in int8; the number format is that of its products.
        """
        if way.dtype == INT8:
            export = graph_of(checkpoint, [self.name, "nncf"], _trace_in_int8)
        else:
            export = graph_of(checkpoint, [self.name], _trace)
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
        if dtype == INT8:
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _GROUP
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
    _save(_converted(module, inputs), folder)


def _trace_in_int8(module: Any, inputs: Mapping[str, Any], folder: Path) -> None:
    _save(_in_int8(_converted(module, inputs)), folder)


def _converted(module: Any, inputs: Mapping[str, Any]) -> Any:
    return import_openvino().convert_model(module, example_input=tuple(inputs.values()))


def _save(graph: Any, folder: Path) -> None:
    import_openvino().save_model(graph, folder / _GRAPH, compress_to_fp16=False)


def _in_int8(graph: Any) -> Any:
    """Returns a graph with its matrices in int8, each of their rows with a scale of its own.

    The package that does it writes tables to standard output, and has every logger made after it
    be of a class of its own.
    """
    loggers = logging.getLoggerClass()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            nncf = importlib.import_module("nncf")
        finally:
            logging.setLoggerClass(loggers)
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)


def check_int8(options: ModelOptions) -> None:
    """Raises unless a model can be run in int8, as far as the options tell.

    Raises:
        ConfigError: another backend, or a task that is no graph.
        EngineUnavailableError: a package is missing.
    """
    if options.acceleration not in ("auto", OpenVinoBackend.name):
        raise ConfigError(
            f"dtype='int8' with acceleration={options.acceleration!r}: only OpenVINO runs models "
            "in int8; leave acceleration out, or give another dtype"
        )
    if not is_one_pass(options):
        raise ConfigError(
            f"dtype='int8' with task={options.task.name!r}: it is for models that one forward pass "
            f"on one CPU takes, for {', '.join(graph_tasks())}; leave dtype out"
        )
    missing = [one for one in ("openvino", "nncf") if importlib.util.find_spec(one) is None]
    if missing:
        raise EngineUnavailableError(
            f"dtype='int8': the package {missing[0]} is not installed; run pip install openvino "
            "nncf (the extra [int8]) on every node, or leave dtype out"
        )


def import_openvino() -> Any:
    """Returns the package, without the one by which it reports its use to its makers.

    Source: `openvino.tools.ovc.telemetry_utils`, which does without if it cannot be imported.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")
