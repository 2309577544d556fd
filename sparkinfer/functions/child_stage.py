"""A stage in a process of its own, so that it works on the next rows while others use the last."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from sparkinfer.exceptions import JobError, SparkInferError
from sparkinfer.functions.columns import fit
from sparkinfer.functions.stages import FunctionStage, Item, StageStatistics
from sparkinfer.functions.user_function import UserFunction
from sparkinfer.workers.child import end_with_parent, start_child
from sparkinfer.workers.devices import as_visible
from sparkinfer.workers.lookahead import LookAhead
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.watchdog import Activity

_READY, _ITEM, _AT, _END, _ERROR = "ready", "item", "at", "end", "error"
"""Kinds of messages, each a pair of its kind and what it carries."""

_HOME = "sparkinfer.functions.child_stage:serve"


class ChildStage:
    """A function in a child process; see `Stage`.

    The child ends with this process: it sees its connection end.

    Args:
        function: what is called there.
        keeps_failed: see `FunctionStage`.
        slot: what this process has been given, which the child shares.
    """

    def __init__(self, function: UserFunction, keeps_failed: bool, slot: WorkerSlot) -> None:
        self._function = function
        self._keeps_failed = keeps_failed
        self._slot = slot
        self._child: _Child | None = None
        self._is_ready = False
        self._is_busy = False
        self.statistics = StageStatistics()
        self._activity: Activity | None = None

    @property
    def activity(self) -> Activity | None:
        """The call that is under way in the child."""
        return self._activity

    def begin(self) -> None:
        """Starts the child unless it is there."""
        if self._child is None:
            self._child = _Child(self._function.name, self._slot)
            self._child.send((self._function, self._keeps_failed))
            self._is_ready = False

    def start(self) -> None:
        """Waits until the function is ready in the child.

        Raises:
            SparkInferError: it is not found there, or its class cannot be constructed.
        """
        self.begin()
        if not self._is_ready:
            self._started.receive()
            self._is_ready = True

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields what the function makes of the rows; two results are made ahead.

        Raises:
            JobError: the function fails, or its process has died.
        """
        if self._is_busy:
            self.close()  # what it is still making has no taker
        self.start()
        child, self._is_busy, is_whole = self._started, True, False
        sending = _Sending(child, items)
        ahead = LookAhead(self._received(child), lambda item: item)
        try:
            yield from ahead
            sending.check()
            is_whole = True
        finally:
            if not is_whole:
                child.end()
            ahead.close()
            if self._child is child:  # it may be another one's by now
                self._child = child if is_whole else None
                self._is_busy, self._activity = False, None

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.end()
            self._child, self._is_busy = None, False

    @property
    def _started(self) -> _Child:
        if self._child is None:
            raise AssertionError("the child is started before it is used")
        return self._child

    def _received(self, child: _Child) -> Iterator[Item]:
        while True:
            kind, content = child.receive()
            self._activity = content if kind == _AT else None
            if kind == _ITEM:
                yield content
            elif kind == _END:
                self.statistics.add(content)
                return


class _Child:
    """The process of a stage, and the connection with it.

    Args:
        name: of its function.
        slot: that it shares.
    """

    def __init__(self, name: str, slot: WorkerSlot) -> None:
        self._name = name
        visible = as_visible(slot.device, os.environ)
        self._process, self._connection = start_child(
            _HOME, {"OMP_NUM_THREADS": str(slot.cores), **visible}
        )
        # Its descriptor may be another file's once it is closed: not while a thread is using it.
        self._sending, self._receiving = threading.Lock(), threading.Lock()

    def send(self, message: Any) -> None:
        with self._sending, contextlib.suppress(OSError):  # whoever receives learns why
            self._connection.send(message)

    def receive(self) -> tuple[str, Any]:
        """Returns the child's next message; raises what it has raised."""
        try:
            with self._receiving:
                kind, content = self._connection.recv()
        except (EOFError, OSError):
            raise JobError(
                f"fn={self._name}: its process ended with code {self._process.wait()} over a "
                "batch; what it printed is in the worker's log"
            ) from None
        if kind == _ERROR:
            raise content
        return kind, content

    def end(self) -> None:
        self._process.kill()  # whoever is sending or receiving sees the other end close
        self._process.wait()
        with self._sending, self._receiving:
            self._connection.close()


class _Sending:
    """Sends rows to a child, in a thread, as it takes them.

    Args:
        child: takes them.
        items: the rows.
    """

    def __init__(self, child: _Child, items: Iterable[Item]) -> None:
        self._child = child
        self._items = items
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="sparkinfer-sending", daemon=True).start()

    def check(self) -> None:
        """Raises what reading the rows has raised."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for item in self._items:
                self._child.send((_ITEM, item))
        except BaseException as error:  # handed to whoever takes the results
            self._error = error
        self._child.send((_END, None))


def serve(descriptor: int) -> None:
    """Runs in the child: serves one stream of rows after the other, until the parent ends.

    Args:
        descriptor: of the connection.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends, and so ends this
    connection = Connection(descriptor)
    end_with_parent(descriptor)
    try:
        function, keeps_failed = connection.recv()
        _serve(connection, function, keeps_failed)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has ended
    os._exit(0)  # whatever threads the user's code has left


def _serve(connection: Connection, function: UserFunction, keeps_failed: bool) -> None:
    def tell(activity: Activity | None) -> None:
        if activity is not None:
            connection.send((_AT, activity))

    try:
        finish = partial(fit, schema=function.columns) if function.columns is not None else None
        stage = FunctionStage(function.open(), keeps_failed, finish, on_activity=tell)
        connection.send((_READY, None))
        while True:
            before = replace(stage.statistics)
            for item in stage.run(_items(connection)):
                connection.send((_ITEM, item))
            connection.send((_END, stage.statistics.since(before)))
    except SparkInferError as error:
        connection.send((_ERROR, error))


def _items(connection: Connection) -> Iterator[Item]:
    while True:
        kind, content = connection.recv()
        if kind == _END:
            return
        yield content
