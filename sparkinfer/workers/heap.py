"""The C heap of a process that scores for days."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Gives the pages that hold nothing any more back to the system; does so on glibc only.

    The buffers of batches and windows have ever other sizes and live in turn with small objects
    that stay, so that glibc by itself keeps more free pages with every window.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
