"""The C and Arrow heaps of a process that scores for days."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa


def trim() -> None:
    """Returns unused pages to the system.

    The buffers of batches and windows vary in size and alternate with small objects that stay, so
    glibc on its own keeps more free pages with every window. Arrow's allocator returns them after a
    second, in which a fast run fills many.
    """
    pa.default_memory_pool().release_unused()
    if _malloc_trim is not None:
        _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
