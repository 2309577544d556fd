"""Prepares an iterator's items: in a thread, a few items ahead of the consumer, or each in turn."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_CLOSE_TIMEOUT_S = 5.0
"""A source that blocks, such as a socket, cannot be interrupted; its thread is left behind."""


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class LookAhead(Generic[T, R]):
    """Yields `prepare(item)` for each item of a source, in order, prepared in a thread.

    At most two prepared items wait while the consumer works: one in the queue and one in the
    thread. The thread pulls from the source, so reading input is overlapped too.

    Args:
        source: items; pulled, and closed if possible, by the thread.
        prepare: what is done to each item.
    """

    _END = object()

    def __init__(self, source: Iterable[T], prepare: Callable[[T], R]) -> None:
        self._source = source
        self._prepare = prepare
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparkinfer-lookahead", daemon=True)

    def __iter__(self) -> Iterator[R]:
        self._thread.start()
        while True:
            item = self._ready.get()
            if item is self._END:
                return
            if isinstance(item, _Failure):
                raise item.error
            handed_over = [item]
            del item  # so that only the consumer refers to it while this waits for the next one
            yield handed_over.pop()

    def close(self) -> None:
        """Stops the thread; items not yet yielded are dropped."""
        self._stopped.set()
        if self._thread.ident is None:
            return
        with contextlib.suppress(queue.Empty):
            self._ready.get_nowait()  # makes room for the one item the thread may still put
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        iterator = iter(self._source)
        try:
            for item in iterator:
                if self._stopped.is_set():
                    return
                self._ready.put(self._prepare(item))
                if self._stopped.is_set():
                    return
            self._ready.put(self._END)
        except BaseException as error:  # handed to the consumer, which raises it
            self._ready.put(_Failure(error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


class InTurn(Generic[T, R]):
    """Yields the same without a thread: nothing is prepared while the consumer works.

    Args:
        source: items.
        prepare: what is done to each item.
    """

    def __init__(self, source: Iterable[T], prepare: Callable[[T], R]) -> None:
        self._source = source
        self._prepare = prepare

    def __iter__(self) -> Iterator[R]:
        return map(self._prepare, self._source)

    def close(self) -> None:
        """Closes the source."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
