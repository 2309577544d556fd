"""Workers' reports to a listener on the driver.

Reports are JSON over an authenticated socket (`multiprocessing.connection`, HMAC with a secret made
for the run). They are advisory: a worker that cannot reach the driver scores regardless.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
)
from typing import Any

from sparkinfer.logs import get_logger
from sparkinfer.workers.statistics import ScoringStatistics
from sparkinfer.workers.steps import Step

logger = get_logger(__name__)

REPORT_INTERVAL_S = 0.5
"""Minimum time between two reports of one worker; the final one is sent immediately."""

MAX_REPORT_BYTES = 65536

CLOSE_TIMEOUT_S = 2.0
"""Time that a worker, and the driver at the end of a run, allows for the last reports to arrive."""

HUNG_UP_S = 5.0
"""Time in which Spark ends the workers of a run that was stopped; it hangs up first."""

BACKLOG = 512
"""Workers that may connect at the same moment."""


@dataclass(frozen=True)
class WorkerReport:
    """What one worker has done so far.

    Attributes:
        worker: name of the worker and its share of the rows, the same for every attempt at them
            and never used for other rows: `chunk 12 task 1`.
        attempt: which attempt at these rows; a higher one replaces a lower one.
        device: what the model runs on, with the host's name.
        statistics: counts and seconds so far.
        done: whether the worker succeeded; no more reports have this name.
        step: what it is at before it scores, and how far that is; see `Step`.
        host: what its host is; see `machine`. None: not known yet.
    """

    worker: str
    attempt: int
    device: str
    statistics: ScoringStatistics
    done: bool = False
    step: Step | None = None
    host: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        """Rows through the model so far."""
        return self.statistics.rows + self.statistics.rows_in_window


@dataclass(frozen=True)
class ProgressAddress:
    """Where and with which secret a worker reports; sent to the workers with their task."""

    host: str
    port: int
    secret: bytes = field(repr=False)


class ProgressServer:
    """Listens for workers' reports.

    Args:
        on_report: receives the reports, concurrently from several threads.
        host: address of the driver that workers can reach.
    """

    def __init__(self, on_report: Callable[[WorkerReport], None], host: str) -> None:
        self._on_report = on_report
        # No key here: a stranger who connects and stays silent would block `accept`.
        self._listener = Listener((host, 0), backlog=BACKLOG)
        port = int(self._listener.address[1])
        self.address = ProgressAddress(host, port, secrets.token_bytes(32))
        self._closed = threading.Event()
        self._receivers: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stops listening once everything that ended workers had sent has been read."""
        self._closed.set()
        with contextlib.suppress(OSError):  # wakes the thread that waits in `accept`
            socket.create_connection((self.address.host, self.address.port), 1).close()
        self._acceptor.join(CLOSE_TIMEOUT_S)
        self._listener.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for receiver in self._receivers:
            receiver.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):
                connection = self._listener.accept()
                receiver = threading.Thread(target=self._receive, args=(connection,), daemon=True)
                # There may be tens of thousands of tasks: ended threads are not kept.
                self._receivers = [one for one in self._receivers if one.is_alive()]
                receiver.start()
                self._receivers.append(receiver)

    def _receive(self, connection: Connection) -> None:
        with contextlib.suppress(OSError, EOFError, AuthenticationError), connection:
            deliver_challenge(connection, self.address.secret)
            answer_challenge(connection, self.address.secret)
            while True:
                self._on_report(_decode(connection.recv_bytes(MAX_REPORT_BYTES)))


class ProgressClient:
    """Sends a worker's latest statistics periodically, from a separate thread.

    Scoring never waits for it: if the driver cannot be reached or stops reading, only the display
    suffers.

    Args:
        address: the listener, or None to send nothing.
        worker: see `WorkerReport`.
        attempt: see `WorkerReport`.
        device: see `WorkerReport`.
    """

    def __init__(
        self, address: ProgressAddress | None, worker: str, attempt: int, device: str
    ) -> None:
        self._address = address
        self._identity = (worker, attempt, device)
        self._host: Mapping[str, Any] | None = None
        self._latest: WorkerReport | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        if address is not None:
            self._thread.start()

    def runs_on(self, host: Mapping[str, Any]) -> None:
        """Takes what the host is, which is sent along from now on."""
        self._host = host

    def send(self, statistics: ScoringStatistics) -> None:
        """Takes the statistics so far; they are sent unless newer ones come first."""
        self._put(statistics, done=False)

    def finish(self, statistics: ScoringStatistics) -> None:
        """Takes the final statistics of a worker that succeeded; `close` sends them."""
        self._put(statistics, done=True)

    def tell(self, step: Step | None) -> None:
        """Takes what the worker is at before it scores."""
        self._put(ScoringStatistics(), done=False, step=step)

    def close(self) -> None:
        """Sends what is waiting, if the driver accepts it soon, and closes the connection."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._address is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _put(self, statistics: ScoringStatistics, *, done: bool, step: Step | None = None) -> None:
        report = WorkerReport(*self._identity, replace(statistics), done, step, self._host)
        with self._changed:
            self._latest = report
            self._changed.notify()

    def _run(self) -> None:
        try:
            with self._connect() as connection:
                while (latest := self._next()) is not None:
                    connection.send_bytes(_encode(latest))
        except Exception as error:  # display only: a firewall must not stop scoring
            if not self._ends_soon():
                logger.warning("no progress from this worker: driver not reachable (%s)", error)

    def _ends_soon(self) -> bool:
        """Returns whether the worker is about to end, as where the run was stopped."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, HUNG_UP_S)

    def _connect(self) -> Connection:
        assert self._address is not None  # the thread runs only with an address
        target = (self._address.host, self._address.port)
        return Client(target, authkey=self._address.secret)

    def _next(self) -> WorkerReport | None:
        """Returns the report to send next, None when the client closes and nothing is left."""
        with self._changed:
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, REPORT_INTERVAL_S)
            self._changed.wait_for(lambda: self._closing or self._latest is not None)
            latest, self._latest = self._latest, None
            return latest


def _encode(report: WorkerReport) -> bytes:
    values: dict[str, Any] = {**vars(report), "statistics": report.statistics.as_dict()}
    return json.dumps(values).encode("utf-8")


def _decode(message: bytes) -> WorkerReport:
    values = json.loads(message)
    values["statistics"] = ScoringStatistics(**values["statistics"])
    values["step"] = values["step"] and Step(*values["step"])
    return WorkerReport(**values)
