"""How far a run is, for display and statistics.

What workers report is advisory, and no decision depends on it. What counts is what the driver
itself reports: the rows that an earlier run had done (`Progress.skip`) and those it has recorded
(`Progress.commit`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sparkinfer.plan.phases import LOAD, SCORE, Phases
from sparkinfer.plan.timeline import Timeline
from sparkinfer.workers.channel import WorkerReport
from sparkinfer.workers.statistics import ScoringStatistics

RATE_WINDOW_S = 30.0
"""How far `rows_per_s_now` looks back."""

SAMPLE_INTERVAL_S = 1.0
"""Minimum time between the samples of a rate that are kept; a window holds up to about sixty."""

MIN_RATE_S = 1.0
"""Minimum time that a rate is taken over: the first reports of many workers arrive together."""

ETA_AFTER_S = 5.0
"""Time from the first row to the first estimate of the end."""

MAX_WORKER_NAMES = 10_000
"""Maximum number of running workers, and of ended ones, kept by name; totals cover the others."""


@dataclass(frozen=True)
class DeviceProgress:
    """What the workers on one device have done so far.

    Attributes:
        device: what the model runs on, with the host's name.
        statistics: counts and seconds, summed over the workers.
        rows_per_s: over about the last 30 seconds.
    """

    device: str
    statistics: ScoringStatistics
    rows_per_s: float

    @property
    def rows(self) -> int:
        """Rows through the model so far."""
        return self.statistics.rows + self.statistics.rows_in_window


@dataclass(frozen=True)
class ProgressState:
    """How far a run is at one moment.

    Attributes:
        phase: name of the current phase, empty if there is none; see `plan.phases`.
        phase_s: seconds since it began.
        elapsed_s: since this progress was created, until the run ended.
        rows: rows done before this run plus rows through the model by the workers' reports; at
            least the rows recorded, at most `total_rows`.
        total_rows: rows of the input, None if unknown.
        skipped_rows: rows among `rows` that an earlier run had done.
        chunks: chunks recorded, by this run or an earlier one.
        total_chunks: None if unknown.
        rows_per_s: of this run since its first row, so without start-up and skipped rows.
        rows_per_s_now: over about the last 30 seconds; 0 if nothing moved.
        eta_s: seconds to the end, None if it cannot be estimated.
        errors: rows of this run that have an error.
        padding_share: share of the model's tokens that were padding, 0 to 1.
        devices: what each device did, by its name.
        bottleneck: the step for which the others of a worker wait, and its share of the time, 0 to
            1; None if unknown.
    """

    phase: str
    phase_s: float
    elapsed_s: float
    rows: int
    total_rows: int | None
    skipped_rows: int
    chunks: int
    total_chunks: int | None
    rows_per_s: float
    rows_per_s_now: float
    eta_s: float | None
    errors: int
    padding_share: float
    devices: tuple[DeviceProgress, ...]
    bottleneck: tuple[str, float] | None = None


class _RecentRate:
    """Rows per second over about the last `RATE_WINDOW_S`, from a bounded number of samples."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, rows: int) -> None:
        """Takes the rows done so far; the last sample is always the newest count."""
        samples = self._samples
        if len(samples) > 1 and now - samples[-2][0] < SAMPLE_INTERVAL_S:
            samples.pop()
        samples.append((now, rows))
        self._forget(now)

    def at(self, now: float) -> float:
        """Returns the rate, 0 if no rows came within the window or some were lost."""
        self._forget(now)
        if not self._samples:
            return 0.0
        (since, before), (_, rows) = self._samples[0], self._samples[-1]
        return max(rows - before, 0) / max(now - since, MIN_RATE_S)

    def _forget(self, now: float) -> None:
        """Drops samples before the window, except the last: it has the rows at its start."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - RATE_WINDOW_S:
            self._samples.popleft()


@dataclass
class _Device:
    """What is kept for one device: the sum over ended workers, and the rows of all workers."""

    ended: ScoringStatistics = field(default_factory=ScoringStatistics)
    rows: int = 0
    recent: _RecentRate = field(default_factory=_RecentRate)


class Progress:
    """How far a run is; thread-safe.

    Its memory grows with concurrent workers and devices, not with chunks: the statistics of a
    worker that ended are added to its device's sum, and only the last `MAX_WORKER_NAMES` names are
    kept, to recognise late reports. A worker that never reported its end is taken to have ended
    once that many others have reported after it.

    Args:
        total_rows: see `expect`.
        total_chunks: likewise.
        clock: returns monotonic seconds.

    Attributes:
        total_rows: as expected.
        total_chunks: as expected.
        lost_workers: processes that ended before their time, as far as known.
    """

    def __init__(
        self,
        total_rows: int | None = None,
        total_chunks: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lost_workers = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._ended_at: float | None = None
        self._phases = Phases()
        self._hosts: dict[str, dict[str, Any]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._earlier: tuple[DeviceProgress, ...] = ()
        self._count_from_nothing(total_rows, total_chunks)

    def expect(self, total_rows: int | None, total_chunks: int | None) -> None:
        """Starts to count another part of the run: rows to be scored again, or for the first time.

        What devices have done so far stays in their sums.

        Args:
            total_rows: rows of the part, None if not known beforehand.
            total_chunks: chunks of the part, likewise.
        """
        with self._lock:
            self._earlier = self._all_devices(self._clock())
            self._count_from_nothing(total_rows, total_chunks)

    def _count_from_nothing(self, total_rows: int | None, total_chunks: int | None) -> None:
        self.total_rows = total_rows
        self.total_chunks = total_chunks
        self._running: OrderedDict[str, WorkerReport] = OrderedDict()
        self._devices: dict[str, _Device] = {}
        self._reported_rows = 0
        self._skipped_rows = 0
        self._committed_rows = 0
        self._committed_errors = 0
        self._chunks = 0
        self._first_rows: tuple[float, int] | None = None
        self._recent = _RecentRate()
        self._timeline = Timeline()

    def enter(self, phase: str) -> None:
        """Ends the current phase and starts another."""
        with self._lock:
            self._phases.enter(phase, self._clock())
            self._ended_at = None

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Has a phase while the context is open, and then again the one before."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before) if before else self.end()

    def end(self) -> None:
        """Ends the current phase; time and rates stay as they are."""
        with self._lock:
            self._ended_at = self._clock()
            self._phases.end(self._ended_at)

    @property
    def phase(self) -> str:
        """Name of the current phase, empty if there is none."""
        return self._phases.current

    @property
    def phases(self) -> dict[str, float]:
        """Seconds that each phase has taken so far, by name, in the order of their start."""
        with self._lock:
            return self._phases.seconds(self._clock())

    @property
    def elapsed_s(self) -> float:
        """Seconds since this progress was created, until the run ended."""
        return (self._clock() if self._ended_at is None else self._ended_at) - self._started

    def skip(self, rows: int, chunks: int) -> None:
        """Counts rows and chunks that an earlier run had done."""
        with self._lock:
            self._skipped_rows += rows
            self._chunks += chunks

    def commit(self, rows: int, errors: int) -> None:
        """Counts a chunk of this run that was recorded.

        Args:
            rows: rows of the chunk, those with an error included.
            errors: rows among them that have an error.
        """
        with self._lock:
            self._committed_rows += rows
            self._committed_errors += errors
            self._chunks += 1
            self._sample(self._clock())
            self._leave_loading()

    def lose_worker(self) -> None:
        """Counts a process that ended before its time."""
        with self._lock:
            self.lost_workers += 1

    def update(self, report: WorkerReport) -> None:
        """Replaces the worker's last report; reports of ended workers are ignored."""
        with self._lock:
            if not self._is_news(report):
                return
            now = self._clock()
            if report.host is not None:
                self._see_host(report.host)
            known = self._running.pop(report.worker, None)
            if known is not None:
                self._count(known, -known.rows, now)
            self._count(report, report.rows, now)
            if report.done:
                self._end_worker(report)
            else:
                self._running[report.worker] = report
                if len(self._running) > MAX_WORKER_NAMES:
                    self._end_worker(self._running.popitem(last=False)[1])
            self._sample(now)
            if report.rows:
                self._leave_loading()

    def _leave_loading(self) -> None:
        """Has rows scored from now on, if they waited for the model so far."""
        if self._phases.current == LOAD:
            self._phases.enter(SCORE, self._clock())

    def _is_news(self, report: WorkerReport) -> bool:
        """Returns whether a report counts: not if its worker has ended or its attempt is dead.

        The end counts whichever attempt it is from: of two concurrent attempts, the first wins.
        """
        if report.worker in self._ended:
            return False
        known = self._running.get(report.worker)
        return known is None or report.done or report.attempt >= known.attempt

    def _see_host(self, host: Mapping[str, Any]) -> None:
        """Notes what a host is; each worker knows the GPUs that it has itself."""
        known = self._hosts.get(host["name"], {"gpus": {}})
        about = {name: value for name, value in host.items() if name != "name"}
        self._hosts[host["name"]] = {**about, "gpus": {**known["gpus"], **host["gpus"]}}

    def _count(self, report: WorkerReport, rows: int, now: float) -> None:
        device = self._devices.setdefault(report.device, _Device())
        device.rows += rows
        device.recent.add(now, device.rows)
        self._reported_rows += rows

    def _end_worker(self, report: WorkerReport) -> None:
        """Adds what a worker did to its device's sum and keeps only its name."""
        self._devices[report.device].ended.add(report.statistics)
        self._ended[report.worker] = None
        if len(self._ended) > MAX_WORKER_NAMES:
            self._ended.popitem(last=False)

    def _sample(self, now: float) -> None:
        rows = self._rows() - self._skipped_rows
        if rows > 0 and self._first_rows is None:
            self._first_rows = (now, rows)
        if self._first_rows is not None:
            self._recent.add(now, rows)
        self._timeline.add(now - self._started, self._rows())

    def _rows(self) -> int:
        rows = self._skipped_rows + max(self._reported_rows, self._committed_rows)
        return rows if self.total_rows is None else min(rows, self.total_rows)

    def state(self) -> ProgressState:
        """Returns how far the run is now."""
        with self._lock:
            now = self._clock() if self._ended_at is None else self._ended_at
            devices = self._device_progress(now)
            total = _sum(device.statistics for device in devices)
            rate, rate_now = self._rate(now), self._recent.at(now)
            return ProgressState(
                phase=self._phases.current,
                phase_s=self._phases.current_s(now),
                elapsed_s=now - self._started,
                rows=self._rows(),
                total_rows=self.total_rows,
                skipped_rows=self._skipped_rows,
                chunks=self._chunks,
                total_chunks=self.total_chunks,
                rows_per_s=rate,
                rows_per_s_now=rate_now,
                eta_s=self._eta(now, rate, rate_now),
                errors=max(self._committed_errors, total.errors),
                padding_share=total.padding_share,
                devices=devices,
                bottleneck=total.bottleneck,
            )

    @property
    def committed(self) -> tuple[int, int]:
        """Rows of this part that were recorded, and how many of them have an error."""
        with self._lock:
            return self._committed_rows, self._committed_errors

    @property
    def timeline(self) -> tuple[tuple[float, int], ...]:
        """Seconds since this progress was created, and rows of this part done by then."""
        with self._lock:
            now = self._clock() if self._ended_at is None else self._ended_at
            return self._timeline.until(now - self._started, self._rows())

    @property
    def hosts(self) -> dict[str, dict[str, Any]]:
        """What the hosts of workers are that reported, by name; see `machine`."""
        with self._lock:
            return dict(self._hosts)

    @property
    def devices(self) -> tuple[DeviceProgress, ...]:
        """What each device has done so far in all parts of the run, sorted by name."""
        with self._lock:
            return self._all_devices(self._clock() if self._ended_at is None else self._ended_at)

    def _all_devices(self, now: float) -> tuple[DeviceProgress, ...]:
        joined = {one.device: one for one in self._earlier}
        for one in self._device_progress(now):
            before = joined.get(one.device)
            parts = [one.statistics, *([before.statistics] if before else [])]
            joined[one.device] = replace(one, statistics=_sum(parts))
        return tuple(joined[name] for name in sorted(joined))

    def statistics(self) -> ScoringStatistics:
        """Returns the sum over all workers that reported, ended or running."""
        return _sum(device.statistics for device in self.devices)

    def _device_progress(self, now: float) -> tuple[DeviceProgress, ...]:
        sums = {name: replace(device.ended) for name, device in self._devices.items()}
        for report in self._running.values():
            sums[report.device].add(report.statistics)
        return tuple(
            DeviceProgress(name, sums[name], self._devices[name].recent.at(now))
            for name in sorted(sums)
        )

    def _rate(self, now: float) -> float:
        if self._first_rows is None:
            return 0.0
        since, before = self._first_rows
        rows = self._rows() - self._skipped_rows
        return max(rows - before, 0) / max(now - since, MIN_RATE_S)

    def _eta(self, now: float, rate: float, rate_now: float) -> float | None:
        """Returns the seconds that the remaining rows take at the mean of both rates.

        The recent rate is clamped to between half and twice the overall one. So a change of speed
        shows immediately, while a pause between two chunks, in which the recent rate is 0, moves
        the estimate by a third.
        """
        if self.total_rows is None:
            return None
        if self._skipped_rows + self._committed_rows >= self.total_rows:
            return 0.0
        remaining = self.total_rows - self._rows()
        if self._first_rows is None or now - self._first_rows[0] < ETA_AFTER_S:
            return None
        if not rate or not remaining:  # all rows are through the model but not all recorded
            return None
        return remaining / ((rate + min(max(rate_now, rate / 2), 2 * rate)) / 2)


def _sum(parts: Iterable[ScoringStatistics]) -> ScoringStatistics:
    total = ScoringStatistics()
    for part in parts:
        total.add(part)
    return total
