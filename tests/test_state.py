from __future__ import annotations

from typing import Any

import torch

from sparkinfer.models.state import ModuleState, reset_before_each_batch


class Growing(torch.nn.Module):
    """Adds up what it has seen, in every place where a module can keep something."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1))
        self.calls = 0
        self.lengths: list[int] = []
        self.by_length: dict[int, torch.Tensor] = {8: torch.zeros(1)}
        self.inner: torch.nn.Module = torch.nn.Identity()

    def forward(self, values: Any) -> Any:
        self.total += values.sum()
        self.calls += 1
        self.lengths.append(len(values))
        self.by_length[8].add_(1)
        result = self.inner(values) + self.total + self.by_length[8]
        self.inner = torch.nn.Flatten(0)
        self.seen_only_now = True
        return result


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.growing = Growing()

    def forward(self, values: Any) -> Any:
        return self.growing(self.linear(values))


def test_the_parts_that_change_are_told() -> None:
    module = Outer()
    state = ModuleState(module)
    assert state.changed() == ()
    module(torch.ones(3, 1))
    assert state.changed() == ("growing",)


def test_what_a_part_has_only_now_is_no_change() -> None:
    module = Outer()
    state = ModuleState(module)
    module.growing.cache = torch.ones(2)
    assert state.changed() == ()


def test_the_state_is_put_back() -> None:
    module = Outer()
    state = ModuleState(module)
    first = module(torch.ones(3, 1))
    assert not torch.equal(module(torch.ones(3, 1)), first)
    state.put_back()
    assert state.changed() == ()
    assert torch.equal(module(torch.ones(3, 1)), first)


def test_a_module_that_is_reset_gives_the_same_each_time() -> None:
    module = Outer()
    reset_before_each_batch(module, ["growing"])
    results = [module(torch.ones(3, 1)) for _ in range(3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert isinstance(module.growing.inner, torch.nn.Flatten)  # as the last call has left it


def test_the_state_that_is_put_back_is_that_of_the_cast_module() -> None:
    module = Outer()
    reset_before_each_batch(module, ["growing"])
    module.to(torch.bfloat16)
    for _ in range(2):
        module(torch.ones(3, 1, dtype=torch.bfloat16))
        assert module.growing.total.dtype == torch.bfloat16
