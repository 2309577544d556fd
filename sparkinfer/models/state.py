"""What a module keeps from one batch to the next, so that it can be put back.

Some models change with what they have seen: rotary frequencies grow with the longest text so far,
sparse attention is given up at the first short one, a reservoir or a running mean moves on. Their
state as loaded is put back before each batch, so that no batch depends on those before it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any


class ModuleState:
    """The state of a module and of all its parts.

    It is made of buffers, parts and attributes; weights do not belong to it.

    Args:
        module: a torch module, before its first batch.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._kept = {name: _state_of(part) for name, part in module.named_modules()}

    def changed(self) -> tuple[str, ...]:
        """Returns the names of the parts whose state is another now, a part before its own parts.

        What a part has only now is no change: it is something that it makes once.
        """
        parts = dict(self._module.named_modules())
        return tuple(
            name
            for name, kept in self._kept.items()
            if name not in parts or _differs(kept, _state_of(parts[name]))
        )

    def put_back(self) -> None:
        """Puts the state back in the module."""
        for name in self.changed():
            _put_back(self._module.get_submodule(name), self._kept[name])


def reset_before_each_batch(module: Any, names: Sequence[str]) -> None:
    """Has a module put back the state of some of its parts whenever it is called.

    Their state is taken at the first call, when the module has been cast and moved.

    Args:
        module: a torch module, before its first batch.
        names: of the parts, each before its own parts.
    """
    kept: dict[str, dict[str, Any]] = {}

    def reset(*_: Any) -> None:
        for name in names:
            if name in kept:
                _put_back(module.get_submodule(name), kept[name])
            else:
                kept[name] = _state_of(module.get_submodule(name))

    module.register_forward_pre_hook(reset)


def _state_of(part: Any) -> dict[str, Any]:
    """Returns a copy of the state of one part, without that of its own parts."""
    import torch

    of_torch = set(torch.nn.Module().__dict__) - {"_buffers", "_modules", "training"}
    return {name: _copied(value) for name, value in part.__dict__.items() if name not in of_torch}


def _put_back(part: Any, kept: dict[str, Any]) -> None:
    for name, value in kept.items():
        if name in ("_buffers", "_modules"):  # torch refers to these very dictionaries
            held = getattr(part, name)
            held.clear()
            held.update(_copied(value))
        else:
            part.__dict__[name] = _copied(value)


def _copied(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict | list):
        made = copy.copy(value)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for place, item in items:
            made[place] = _copied(item)
        return made
    return value


def _differs(kept: Any, found: Any) -> bool:
    import torch

    if isinstance(kept, torch.Tensor):
        return not (
            isinstance(found, torch.Tensor)
            and (kept.shape, kept.dtype) == (found.shape, found.dtype)
            and torch.equal(kept, found.to(kept.device))
        )
    if type(kept) is not type(found):
        return True
    if isinstance(kept, dict):
        return any(name not in found or _differs(kept[name], found[name]) for name in kept)
    if isinstance(kept, list):
        return len(kept) != len(found) or any(map(_differs, kept, found))
    if isinstance(kept, bool | int | float | str):
        return bool(kept != found)
    return kept is not found
