"""Devices that work while the host goes on, where there is no GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.torch import CudaRuntime
from sparkinfer.models.checkpoint import Checkpoint
from sparkinfer.models.layout import Layout
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.running import RunningModel, load_way
from sparkinfer.models.tasks.base import Head, Tensors

Fails = Callable[[str, Any], None]
"""Raises what fails at a stage (`launch`, `fetch`, or `forward` of a batch by itself), given the
token ids of the batch."""


@dataclass(frozen=True)
class Pending:
    """An output that the device may still compute."""

    name: str
    tensors: Tensors
    found: Future[Mapping[str, Any]]


class FakeDevice:
    """A runtime that computes what is launched on a thread of its own, one batch after the other.

    Args:
        inner: computes it.
        fails: called at each stage of each batch.

    Attributes:
        log: the stages in order, each with the token ids of the batch.
        finished: the shapes of the batches whose output was handed over.
        staging: names of the threads in which batches were staged.
    """

    module = None

    def __init__(self, inner: Any, fails: Fails = lambda stage, ids: None) -> None:
        self._inner = inner
        self._fails = fails
        self._thread = ThreadPoolExecutor(1)
        self.log: list[tuple[str, Any]] = []
        self.finished: list[tuple[int, int]] = []
        self.staging: set[str] = set()

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    @property
    def launching(self) -> Any:
        return SimpleNamespace(module=None, forward=self._launch)

    @property
    def stages(self) -> list[str]:
        return [stage for stage, _ in self.log]

    @property
    def in_flight(self) -> int:
        return self.stages.count("launch") - self.stages.count("fetch")

    def forward(self, tensors: Tensors, head: Head | None = None) -> Mapping[str, Any]:
        self._at("forward", tensors)
        found = self._thread.submit(self._inner.forward, tensors, head).result()
        self.finished.append(tuple(tensors["input_ids"].shape))
        return found

    def staged(self, tensors: Tensors) -> Tensors:
        self.staging.add(threading.current_thread().name)
        return tensors

    def copied(self, output: Pending) -> Callable[[], Any]:
        def wait() -> Any:
            self._at("fetch", output.tensors)
            found = output.found.result()
            self.finished.append(tuple(output.tensors["input_ids"].shape))
            return found[output.name]

        return wait

    def _launch(self, tensors: Tensors, head: Head | None = None) -> Mapping[str, Any]:
        self._at("launch", tensors)
        found = self._thread.submit(self._inner.forward, tensors, head)
        return {"logits": Pending("logits", tensors, found)}

    def _at(self, stage: str, tensors: Tensors) -> None:
        self.log.append((stage, tensors["input_ids"]))
        self._fails(stage, tensors["input_ids"])


def on_fake_device(
    checkpoint: Checkpoint, inner: Any, fails: Fails = lambda stage, ids: None
) -> tuple[RunningModel, FakeDevice]:
    """Returns a model on such a device, with its batches padded as the gate has them on a GPU.

    Args:
        checkpoint: the model, loaded.
        inner: see `FakeDevice`.
        fails: see `FakeDevice`.
    """
    device = FakeDevice(inner, fails)
    model = RunningModel(checkpoint, device)
    model.device = "cuda:0"
    return model.in_layout(replace(model.layout, pad_to_multiple_of=8)), device


class OnDevice(torch.Tensor):
    """A tensor that only a copy to the host makes readable."""

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def to(self, device: Any, non_blocking: bool = False) -> Any:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


class StandInCuda(CudaRuntime):
    """The runtime of a GPU on the CPU, with outputs as a GPU has them."""

    def outputs_on_device(self, tensors: Tensors, head: Head | None = None) -> Mapping[str, Any]:
        made = super().outputs_on_device(tensors, head)
        return {name: tensor.as_subclass(OnDevice) for name, tensor in made.items()}


class Events:
    """In place of those of CUDA.

    Attributes:
        recorded: how many were recorded.
        waited: how many were waited for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = self.waited = 0
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    def record(self, stream: None) -> None:
        self.recorded += 1

    def synchronize(self) -> None:
        self.waited += 1


def on_stand_in(folder: Path, options: ModelOptions) -> tuple[RunningModel, RunningModel]:
    """Returns a model as the CPU runs it, and as a GPU would; `Events` must be there."""
    checkpoint = Checkpoint(folder, options, "cpu", layout=Layout(pad_to_multiple_of=8))
    plain = load_way(checkpoint, PLAIN)
    runtime: Any = plain.runtime
    return plain, RunningModel(checkpoint, StandInCuda(runtime.pipe))
