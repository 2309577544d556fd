"""Does something with an iterator's items in a thread, while the next ones are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Behind(Generic[T]):
    """Calls a function with each item, in order, in a thread.

    At most one item waits while the thread works. Leaving the context waits until all is done, or,
    with an exception, until the item at hand is.

    Args:
        act: what is done with each item.
    """

    _END = object()

    def __init__(self, act: Callable[[T], None]) -> None:
        self._act = act
        self._waiting: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._gives_up = False
        self._thread = threading.Thread(target=self._run, name="sparkinfer-behind", daemon=True)

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def put(self, item: T) -> None:
        """Hands an item over; waits while another one does.

        Raises:
            BaseException: what the function raised over an earlier item.
        """
        self._raise()
        self._waiting.put(item)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gives_up = error is not None
        self._waiting.put(self._END)
        self._thread.join()
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (item := self._waiting.get()) is not self._END:
            if self._failure is not None or self._gives_up:
                continue  # so that nobody waits for room
            try:
                self._act(item)
            except BaseException as error:  # handed to the one who puts
                self._failure = error
            del item
