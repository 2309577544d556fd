"""Which batches a caller is a part of: one that waits for its own batcher would wait forever."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Batch:
    """A batch that the function is run over.

    Attributes:
        work: that is done with it.
    """

    __slots__ = ("_process", "work")

    def __init__(self, work: object) -> None:
        self.work = work
        self._process: int | None = os.getpid()

    @property
    def is_running(self) -> bool:
        """Returns whether the function has not returned; in a forked child it never will."""
        return self._process == os.getpid()

    def end(self) -> None:
        """Takes note that the function has returned."""
        self._process = None


_around: ContextVar[tuple[Batch, ...]] = ContextVar("batches_around", default=())


def batches_around() -> tuple[Batch, ...]:
    """Returns the batches whose functions wait for what is done in this context."""
    return _around.get()


@contextmanager
def batch_of(work: object, outer: Iterable[Batch]) -> Iterator[None]:
    """Runs what is within as a part of a batch, in a context of its own.

    Args:
        work: that is done with the batch.
        outer: what the callers are a part of.
    """
    batch = Batch(work)
    _around.set((batch, *{one for one in outer if one.is_running}))
    try:
        yield
    finally:
        batch.end()
