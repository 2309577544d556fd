"""How far a run is: workers report to a listener on the driver, for display and statistics.

Reports are JSON over an authenticated socket (`multiprocessing.connection`, HMAC of a secret made
for the run). They are advisory: a worker that cannot reach the driver scores all the same, and no
figure that decides anything comes from here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import socket
import threading
import time
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

from sparkinfer.models.statistics import ScoringStatistics

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.5
"""Least time between two reports of one worker; the last one follows at once."""

MAX_REPORT_BYTES = 65536

CLOSE_TIMEOUT_S = 2.0
"""What a worker, and the driver at the end of a run, gives the last reports to arrive."""

PREPARE, START, SCORE = "prepare", "start", "score"
"""Phases of a job: the input is made ready for the workers, the workers start, rows go through the
model. An engine without the first two has only the last."""

BACKLOG = 512
"""Workers that may connect in the same moment."""


@dataclass(frozen=True)
class WorkerReport:
    """What one worker did so far.

    Attributes:
        worker: name that stays the same over the worker's attempts at the same rows.
        attempt: which try at these rows; a later one takes the place of an earlier one.
        device: what the model runs on, with the host's name.
        statistics: counts and seconds so far.
    """

    worker: str
    attempt: int
    device: str
    statistics: ScoringStatistics


@dataclass
class Progress:
    """The latest report of each worker; safe to use from several threads.

    Attributes:
        total_rows: rows of the input, None where that is not known beforehand.
        phases: seconds that each part of the job took so far, by name, in the order of their
            start; the last is the one that is going on.
    """

    total_rows: int | None = None
    phases: dict[str, float] = field(default_factory=dict)
    _reports: dict[str, WorkerReport] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _first_rows: tuple[float, int] | None = None
    _phase: tuple[str, float] | None = None

    def enter(self, phase: str) -> None:
        """Ends the phase that is going on and starts another."""
        with self._lock:
            self._end_phase()
            self._phase = (phase, time.monotonic())
            self.phases.setdefault(phase, 0.0)

    def end(self) -> None:
        """Ends the phase that is going on."""
        with self._lock:
            self._end_phase()
            self._phase = None

    def _end_phase(self) -> None:
        if self._phase is not None:
            name, started = self._phase
            self.phases[name] += time.monotonic() - started

    @property
    def phase(self) -> str:
        """Name of the phase that is going on, empty if there is none."""
        return self._phase[0] if self._phase else ""

    def update(self, report: WorkerReport) -> None:
        """Takes a report in the place of the worker's last one."""
        with self._lock:
            known = self._reports.get(report.worker)
            if known is None or report.attempt >= known.attempt:
                self._reports[report.worker] = report
        if self._first_rows is None and self.rows:
            self._first_rows = (time.monotonic(), self.rows)

    @property
    def reports(self) -> list[WorkerReport]:
        """The latest report of each worker, by the worker's name."""
        with self._lock:
            return [self._reports[name] for name in sorted(self._reports)]

    @property
    def rows(self) -> int:
        """Rows through the model so far."""
        return sum(r.statistics.rows + r.statistics.rows_in_window for r in self.reports)

    @property
    def rows_per_s(self) -> float:
        """Rows per second since the first row was done, so without start-up."""
        if self._first_rows is None:
            return 0.0
        since, before = self._first_rows
        return (self.rows - before) / max(time.monotonic() - since, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at this rate, None where it cannot be told."""
        if self.total_rows is None or not self.rows_per_s:
            return None
        return max(self.total_rows - self.rows, 0) / self.rows_per_s

    def statistics(self) -> ScoringStatistics:
        """Returns the sum over the workers."""
        total = ScoringStatistics()
        for report in self.reports:
            total.add(report.statistics)
        return total


@dataclass(frozen=True)
class ProgressAddress:
    """Where and with which secret a worker reports; travels to the workers with their task."""

    host: str
    port: int
    secret: bytes = field(repr=False)


class ProgressServer:
    """Listens for reports of workers and hands them to a `Progress`.

    Args:
        progress: receives the reports.
        host: address of the driver that workers can reach.
    """

    def __init__(self, progress: Progress, host: str) -> None:
        self._progress = progress
        # Without a key here: a stranger who connects and stays silent would block `accept`.
        self._listener = Listener((host, 0), backlog=BACKLOG)
        port = int(self._listener.address[1])
        self.address = ProgressAddress(host, port, secrets.token_bytes(32))
        self._closed = threading.Event()
        self._receivers: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stops listening, after what workers sent before they ended has been read."""
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
                self._receivers.append(receiver)
                receiver.start()

    def _receive(self, connection: Connection) -> None:
        with contextlib.suppress(OSError, EOFError, AuthenticationError), connection:
            deliver_challenge(connection, self.address.secret)
            answer_challenge(connection, self.address.secret)
            while True:
                self._progress.update(_decode(connection.recv_bytes(MAX_REPORT_BYTES)))


class ProgressClient:
    """Sends a worker's latest statistics now and then, from a thread of its own.

    The scoring never waits for it: a driver that cannot be reached, or stops reading, costs only
    the display.

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
        self._latest: ScoringStatistics | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        if address is not None:
            self._thread.start()

    def send(self, statistics: ScoringStatistics) -> None:
        """Takes the statistics so far; they are sent unless newer ones come first."""
        with self._changed:
            self._latest = replace(statistics)
            self._changed.notify()

    def close(self) -> None:
        """Sends what is waiting, if the driver takes it soon, and closes the connection."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._address is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            with self._connect() as connection:
                while (latest := self._next()) is not None:
                    connection.send_bytes(_encode(WorkerReport(*self._identity, latest)))
        except Exception as error:  # display only: a firewall must not stop the scoring
            logger.warning("no progress from this worker: driver not reachable (%s)", error)

    def _connect(self) -> Connection:
        assert self._address is not None  # the thread runs only with an address
        target = (self._address.host, self._address.port)
        return Client(target, authkey=self._address.secret)

    def _next(self) -> ScoringStatistics | None:
        """Returns the statistics to send next, None when the worker is done."""
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
    return WorkerReport(**{**values, "statistics": ScoringStatistics(**values["statistics"])})
