"""The heaps of a process that scores for days: C's and Arrow's."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa


def trim() -> None:
    """Gives the pages that hold nothing any more back to the system.

    The buffers of batches and windows have ever other sizes and live in turn with small objects
    that stay, so that glibc by itself keeps more free pages with every window. Arrow's allocator
    gives them back after a second, in which a fast run fills many.
    """
    pa.default_memory_pool().release_unused()
    if _malloc_trim is not None:
        _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
