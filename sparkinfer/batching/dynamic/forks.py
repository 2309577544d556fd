"""What a forked child must not take over from its parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Resettable(Protocol):
    """Something with locks, threads or loops of this process."""

    def reset(self) -> None:
        """Makes everything again, touching nothing of what is there."""


_live: weakref.WeakSet[Resettable] = weakref.WeakSet()


def reset_in_children(one: Resettable) -> None:
    """Has something reset in processes that are forked from this one."""
    _live.add(one)


def _reset_all() -> None:
    for one in list(_live):
        one.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
