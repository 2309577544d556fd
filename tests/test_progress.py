import io
import socket
import threading

import pytest

from sparkinfer.jobs.progress import (
    Progress,
    ProgressAddress,
    ProgressClient,
    ProgressServer,
    WorkerReport,
)
from sparkinfer.models.statistics import ScoringStatistics
from sparkinfer.report import live
from sparkinfer.report.live import describe, format_seconds, live_display


def report(worker: str, rows: int, attempt: int = 0) -> WorkerReport:
    return WorkerReport(worker, attempt, "cpu on here", ScoringStatistics(rows=rows, errors=1))


class Waiting(Progress):
    """A progress that says when it was told something."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def update(self, report: WorkerReport) -> None:
        super().update(report)
        self.told.set()


def test_a_later_attempt_takes_the_place_of_an_earlier_one() -> None:
    progress = Progress(total_rows=100)
    progress.update(report("task 0", 40))
    progress.update(report("task 1", 30))
    progress.update(report("task 0", 10, attempt=1))
    progress.update(report("task 0", 50, attempt=0))  # a straggler of the dead attempt
    assert progress.rows == 40
    assert progress.statistics().errors == 2


def test_reports_of_workers_reach_the_driver() -> None:
    progress = Waiting()
    server = ProgressServer(progress, "127.0.0.1")
    client = ProgressClient(server.address, "task 3", 1, "cuda:0 on gpu7")
    client.send(ScoringStatistics(rows=12, forward_s=0.5))
    assert progress.told.wait(5)
    client.close()
    server.close()
    [received] = progress.reports
    assert received == WorkerReport(
        "task 3", 1, "cuda:0 on gpu7", ScoringStatistics(rows=12, forward_s=0.5)
    )


def test_the_last_report_arrives_before_the_listener_is_closed() -> None:
    for _ in range(20):
        progress = Progress()
        server = ProgressServer(progress, "127.0.0.1")
        client = ProgressClient(server.address, "task 0", 0, "cpu")
        for rows in range(100):
            client.send(ScoringStatistics(rows=rows))
        client.close()
        server.close()
        assert progress.rows == 99


def test_a_driver_that_accepts_and_stays_silent_does_not_hold_up_a_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = ProgressAddress("127.0.0.1", silent.getsockname()[1], b"x")
        client = ProgressClient(address, "task 0", 0, "cpu")
        client.send(ScoringStatistics(rows=1))
        assert client._thread.is_alive()


def test_a_wrong_secret_is_not_heard() -> None:
    progress = Waiting()
    server = ProgressServer(progress, "127.0.0.1")
    stranger = ProgressAddress("127.0.0.1", server.address.port, b"guess")
    ProgressClient(stranger, "task 0", 0, "cpu").send(ScoringStatistics(rows=9))
    ours = ProgressClient(server.address, "task 1", 0, "cpu")
    ours.send(ScoringStatistics(rows=1))
    assert progress.told.wait(5)
    server.close()
    ours.close()
    assert [r.worker for r in progress.reports] == ["task 1"]


def test_a_silent_stranger_does_not_block_the_listener() -> None:
    progress = Waiting()
    server = ProgressServer(progress, "127.0.0.1")
    with socket.create_connection(("127.0.0.1", server.address.port)):
        client = ProgressClient(server.address, "task 1", 0, "cpu")
        client.send(ScoringStatistics(rows=1))
        assert progress.told.wait(5)
    server.close()
    client.close()


def test_a_driver_out_of_reach_does_not_stop_a_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    client = ProgressClient(ProgressAddress("127.0.0.1", port, b"x"), "task 0", 0, "cpu")
    client.send(ScoringStatistics(rows=1))
    client.close()
    assert not client._thread.is_alive()


def test_the_secret_is_not_shown() -> None:
    assert "hunter2" not in repr(ProgressAddress("h", 1, b"hunter2"))


def test_a_line_says_rows_rate_time_left_and_errors() -> None:
    progress = Progress(total_rows=1000)
    progress.update(report("task 0", 100))
    assert describe(progress) == "100 of 1,000 rows, 1 with an error"
    progress._first_rows = (progress._first_rows or (0, 0))[0] - 10.0, 0
    line = describe(progress)
    assert line.startswith("100 of 1,000 rows, 10 rows/s, 1 min ")
    assert line.endswith(" left, 1 with an error")


def test_the_total_is_left_out_where_it_is_not_known() -> None:
    progress = Progress()
    progress.update(report("task 0", 1234))
    assert describe(progress).startswith("1,234 rows")
    assert progress.eta_s is None


def test_durations_are_written_for_people() -> None:
    assert [format_seconds(s) for s in (0.4, 59, 61, 3700)] == [
        "0 s", "59 s", "1 min 1 s", "1 h 1 min",
    ]  # fmt: skip


class Stream(io.StringIO):
    """A stream that says when a text was written to it."""

    def __init__(self, awaited: str, *, terminal: bool) -> None:
        super().__init__()
        self._awaited = awaited
        self._terminal = terminal
        self.seen = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._awaited in self.getvalue():
            self.seen.set()
        return written

    def isatty(self) -> bool:
        return self._terminal


def test_elsewhere_than_in_a_terminal_plain_lines_are_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "PLAIN_INTERVAL_S", 0.01)
    progress = Progress(total_rows=100)
    progress.update(report("task 0", 40))
    stream = Stream("40 of 100 rows", terminal=False)
    with live_display(progress, stream):
        assert stream.seen.wait(5)
    assert stream.getvalue().startswith("sparkinfer: task 0 runs on cpu on here\n")
    assert stream.getvalue().count("runs on") == 1
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_shows_a_bar_with_workers_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "REFRESH_S", 0.01)
    progress = Progress(total_rows=100)
    progress.update(report("task 0", 40))
    stream = Stream("task 0: cpu on here, 40 rows", terminal=True)
    with live_display(progress, stream):
        assert stream.seen.wait(5)
    assert "40 of 100 rows" in stream.getvalue()
