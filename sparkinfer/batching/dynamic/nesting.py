"""Which batches a caller is a part of: one that waits for its own batcher would wait for ever."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Batch:
    """A batch that the function is run over.

    Attributes:
        work: that is done with it.
        is_over: whether the function has returned.
    """

    __slots__ = ("is_over", "work")

    def __init__(self, work: object) -> None:
        self.work = work
        self.is_over = False


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
    _around.set((batch, *{one for one in outer if not one.is_over}))
    try:
        yield
    finally:
        batch.is_over = True
