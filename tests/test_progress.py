import io
import socket
import threading

from sparkinfer.jobs.progress import (
    Progress,
    ProgressAddress,
    ProgressClient,
    ProgressServer,
    WorkerReport,
)
from sparkinfer.models.statistics import ScoringStatistics
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


def test_reports_in_quick_succession_are_dropped_but_for_the_last() -> None:
    progress = Waiting()
    server = ProgressServer(progress, "127.0.0.1")
    client = ProgressClient(server.address, "task 0", 0, "cpu")
    client.send(ScoringStatistics(rows=1))
    assert progress.told.wait(5)
    progress.told.clear()
    client.send(ScoringStatistics(rows=2))
    client.send(ScoringStatistics(rows=3), last=True)
    assert progress.told.wait(5)
    server.close()
    client.close()
    assert progress.rows == 3


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
    assert client._connection is None


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


def test_elsewhere_than_in_a_terminal_nothing_but_lines_is_printed() -> None:
    stream = io.StringIO()
    with live_display(Progress(total_rows=1), stream):
        pass
    assert "\x1b" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_workers_and_devices() -> None:
    progress = Progress(total_rows=100)
    progress.update(report("task 0", 40))
    stream = Terminal()
    with live_display(progress, stream):
        pass
    assert "40 of 100 rows" in stream.getvalue()
