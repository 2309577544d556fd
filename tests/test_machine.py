from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from sparkinfer.workers.machine import machine
from sparkinfer.workers.slot import WorkerSlot


def test_a_host_is_told_with_its_cores_memory_and_processor() -> None:
    found = machine(WorkerSlot("cpu"))
    assert (found["name"], found["cores"]) == (socket.gethostname(), os.cpu_count())
    assert found["memory_bytes"] > 2**20
    assert found["cpu"]
    assert found["gpus"] == {}


def test_the_gpus_are_those_of_the_worker_and_only_once_it_uses_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slot = WorkerSlot("cuda:1", others=("cuda:2",))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H100 {device.index}")
    assert machine(slot)["gpus"] == {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert machine(slot)["gpus"] == {"cuda:1": "H100 1", "cuda:2": "H100 2"}
    assert machine(WorkerSlot("cpu"))["gpus"] == {}


def test_torch_is_not_imported_for_it() -> None:
    code = (
        "import sys; from sparkinfer.workers.machine import machine; "
        "from sparkinfer.workers.slot import WorkerSlot; "
        "machine(WorkerSlot('cuda:0')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
