"""Pinned memory of the host, from and into which a GPU copies while the host goes on.

To free some, torch asks the device whether it still copies. Where the device is broken the answer
is an exception that nobody can catch, and the process is gone with what it had to say. So nothing
of it is freed then.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Mapping
from typing import Any

_numbers = itertools.count()
_held: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def pinned(tensor: Any) -> Any:
    """Returns a tensor of the host in pinned memory; as it is where the host pins no more."""
    try:
        return _noted(tensor.pin_memory())
    except RuntimeError:  # what else is wrong shows in the model
        return tensor


def pinned_copy(output: Any) -> Any:
    """Returns an output in pinned memory, into which its device still copies it.

    Args:
        output: a tensor, or tensors by name or in order.
    """
    if isinstance(output, Mapping):
        return {name: pinned_copy(one) for name, one in output.items()}
    if isinstance(output, tuple | list):
        return tuple(map(pinned_copy, output))
    try:
        return _noted(output.to("cpu", non_blocking=True))
    except RuntimeError:  # the host pins no more
        return output.cpu()


def keep_all() -> None:
    """Sees to it that no pinned memory is freed in this process any more."""
    for tensor in list(_held.values()):
        # A list of the module's would be cleared when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(tensor))


def _noted(tensor: Any) -> Any:
    _held[next(_numbers)] = tensor
    return tensor
