"""The one large thing of a process, such as a loaded model, kept from one task to the next.

A second one would share the accelerator's memory with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_kept: dict[object, tuple[Any, Callable[[], None]]] = {}

_on_change: list[Callable[[bool], None]] = []


def get(key: object, load: Callable[[], Any], on_release: Callable[[], None]) -> Any:
    """Returns what is kept under a key, else what `load` returns, which is kept from now on.

    Args:
        key: tells apart what may be kept.
        load: makes it; what was kept before is gone by then.
        on_release: called when it is gone.
    """
    if key in _kept:
        return _kept[key][0]
    release()
    thing = load()
    keep(key, thing, on_release)
    return thing


def keep(key: object, thing: Any, on_release: Callable[[], None]) -> None:
    """Keeps something in the place of what was kept; see `get`."""
    release()
    _kept[key] = (thing, on_release)
    _tell(True)


def release() -> None:
    """Lets go of what is kept, if there is anything."""
    if not _kept:
        return
    _tell(False)
    on_release = _kept.popitem()[1][1]  # nothing here refers to the thing any more
    on_release()


def on_change(act: Callable[[bool], None]) -> None:
    """Has a function told when something is kept (True) and before it is let go (False)."""
    if act not in _on_change:
        _on_change.append(act)


def _tell(is_kept: bool) -> None:
    for act in _on_change:
        act(is_kept)
