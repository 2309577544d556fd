"""The one large object of a process, such as a loaded model, kept from one task to the next.

Only one, since a second would compete with it for the accelerator's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_kept: dict[object, tuple[Any, Callable[[], None]]] = {}

_on_change: list[Callable[[bool], None]] = []


def get(key: object, load: Callable[[], Any], on_release: Callable[[], None]) -> Any:
    """Returns what is kept under a key, else what `load` returns, which is then kept.

    Args:
        key: identifies what is kept.
        load: creates it; what was kept before has been released by then.
        on_release: called once it is released.
    """
    if key in _kept:
        return _kept[key][0]
    release()
    thing = load()
    keep(key, thing, on_release)
    return thing


def keep(key: object, thing: Any, on_release: Callable[[], None]) -> None:
    """Keeps something in place of what was kept; see `get`."""
    release()
    _kept[key] = (thing, on_release)
    _tell(True)


def release() -> None:
    """Releases what is kept, if anything."""
    if not _kept:
        return
    _tell(False)
    on_release = _kept.popitem()[1][1]  # nothing here refers to the thing any more
    on_release()


def on_change(act: Callable[[bool], None]) -> None:
    """Registers a function to call when something is kept (True) and before its release (False)."""
    if act not in _on_change:
        _on_change.append(act)


def _tell(is_kept: bool) -> None:
    for act in _on_change:
        act(is_kept)
