"""Pinned memory where the device is broken; without a GPU, nothing here is really pinned."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from sparkinfer.workers import pinned


@pytest.fixture(autouse=True)
def nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "_held", weakref.WeakValueDictionary())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())


def references(*tensors: Any) -> list[weakref.ref[Any]]:
    return [weakref.ref(tensor) for tensor in tensors]


def test_pinned_memory_is_freed_while_the_device_works() -> None:
    copy = pinned.pinned_copy({"logits": (torch.ones(2), torch.ones(3))})
    placed = pinned.pinned(torch.ones(4))
    found = references(*copy["logits"], placed)
    assert [one().shape[0] for one in found] == [2, 3, 4]
    del copy, placed
    gc.collect()
    assert [one() for one in found] == [None] * 3
    assert len(pinned._held) == 0


def test_no_pinned_memory_is_freed_once_the_device_is_broken() -> None:
    copy = pinned.pinned_copy((torch.ones(2),))
    placed = pinned.pinned(torch.ones(4))
    found = references(*copy, placed)
    pinned.keep_all()
    del copy, placed
    gc.collect()
    assert [one().shape[0] for one in found] == [2, 4]


def test_where_the_host_pins_no_more_tensors_are_used_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("no more")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    tensor = torch.ones(2)
    assert pinned.pinned(tensor) is tensor
