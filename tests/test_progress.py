import socket
import threading
from collections.abc import Iterable

import pytest

from sparkinfer.plan import progress as progress_module
from sparkinfer.plan.phases import CHECKS, LOAD, MODEL, SCORE
from sparkinfer.plan.progress import ETA_AFTER_S, MAX_WORKER_NAMES, RATE_WINDOW_S, Progress
from sparkinfer.workers.channel import ProgressAddress, ProgressClient, ProgressServer, WorkerReport
from sparkinfer.workers.statistics import ScoringStatistics


def report(
    worker: str, rows: int, attempt: int = 0, *, done: bool = False, device: str = "cpu on here"
) -> WorkerReport:
    return WorkerReport(worker, attempt, device, ScoringStatistics(rows=rows, errors=1), done)


class Clock:
    """A clock that moves when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Waiting(Progress):
    """A progress that says when it received a report, and which."""

    def __init__(self) -> None:
        super().__init__()
        self.received = threading.Event()
        self.reports: list[WorkerReport] = []

    def update(self, report: WorkerReport) -> None:
        super().update(report)
        self.reports.append(report)
        self.received.set()


def feed(progress: Progress, clock: Clock, rows: Iterable[int], every_s: float = 1.0) -> None:
    """Reports these rows of one worker, one after the other; the clock moves before each."""
    for count in rows:
        clock.now += every_s
        progress.update(report("task 0", count))


def test_a_later_attempt_takes_the_place_of_an_earlier_one() -> None:
    progress = Progress(total_rows=100)
    progress.update(report("task 0", 40))
    progress.update(report("task 1", 30))
    progress.update(report("task 0", 10, attempt=1))
    progress.update(report("task 0", 50, attempt=0))  # a straggler of the dead attempt
    assert progress.state().rows == 40
    assert progress.statistics().errors == 2


def test_reports_of_workers_reach_the_driver() -> None:
    progress = Waiting()
    server = ProgressServer(progress.update, "127.0.0.1")
    client = ProgressClient(server.address, "task 3", 1, "cuda:0 on gpu7")
    client.send(ScoringStatistics(rows=12, forward_s=0.5))
    assert progress.received.wait(5)
    client.close()
    server.close()
    [received] = progress.reports
    assert received == WorkerReport(
        "task 3", 1, "cuda:0 on gpu7", ScoringStatistics(rows=12, forward_s=0.5)
    )


def test_the_report_of_a_worker_that_ended_well_says_so() -> None:
    progress = Waiting()
    server = ProgressServer(progress.update, "127.0.0.1")
    client = ProgressClient(server.address, "chunk 12 task 1", 0, "cpu")
    client.send(ScoringStatistics(rows=8))
    client.finish(ScoringStatistics(rows=9))
    client.close()
    server.close()
    assert progress.reports[-1] == WorkerReport(
        "chunk 12 task 1", 0, "cpu", ScoringStatistics(rows=9), done=True
    )


def test_the_listener_keeps_no_thread_of_a_worker_that_has_gone() -> None:
    server = ProgressServer(Progress().update, "127.0.0.1")
    for number in range(50):
        client = ProgressClient(server.address, f"task {number}", 0, "cpu")
        client.finish(ScoringStatistics(rows=1))
        client.close()
        for receiver in server._receivers:
            receiver.join(5)
    assert len(server._receivers) < 5
    server.close()


def test_the_last_report_arrives_before_the_listener_is_closed() -> None:
    for _ in range(20):
        progress = Progress()
        server = ProgressServer(progress.update, "127.0.0.1")
        client = ProgressClient(server.address, "task 0", 0, "cpu")
        for rows in range(100):
            client.send(ScoringStatistics(rows=rows))
        client.close()
        server.close()
        assert progress.state().rows == 99


def test_a_driver_that_accepts_and_stays_silent_does_not_hold_up_a_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = ProgressAddress("127.0.0.1", silent.getsockname()[1], b"x")
        client = ProgressClient(address, "task 0", 0, "cpu")
        client.send(ScoringStatistics(rows=1))
        assert client._thread.is_alive()


def test_a_wrong_secret_is_not_heard() -> None:
    progress = Waiting()
    server = ProgressServer(progress.update, "127.0.0.1")
    stranger = ProgressAddress("127.0.0.1", server.address.port, b"guess")
    ProgressClient(stranger, "task 0", 0, "cpu").send(ScoringStatistics(rows=9))
    ours = ProgressClient(server.address, "task 1", 0, "cpu")
    ours.send(ScoringStatistics(rows=1))
    assert progress.received.wait(5)
    server.close()
    ours.close()
    assert {r.worker for r in progress.reports} == {"task 1"}


def test_a_silent_stranger_does_not_block_the_listener() -> None:
    progress = Waiting()
    server = ProgressServer(progress.update, "127.0.0.1")
    with socket.create_connection(("127.0.0.1", server.address.port)):
        client = ProgressClient(server.address, "task 1", 0, "cpu")
        client.send(ScoringStatistics(rows=1))
        assert progress.received.wait(5)
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


def test_a_late_report_of_a_worker_that_ended_is_ignored() -> None:
    progress = Progress()
    progress.update(report("chunk 1 task 0", 50, done=True))
    progress.update(report("chunk 1 task 0", 40))
    progress.update(report("chunk 1 task 0", 10, attempt=1))
    progress.update(report("chunk 1 task 0", 50, done=True))
    assert progress.state().rows == 50
    assert progress.statistics().errors == 1


def test_of_two_attempts_at_once_the_one_that_ends_first_counts() -> None:
    progress = Progress()
    progress.update(report("chunk 1 task 0", 45))
    progress.update(report("chunk 1 task 0", 20, attempt=1))  # speculative execution
    progress.update(report("chunk 1 task 0", 50, done=True))
    progress.update(report("chunk 1 task 0", 30, attempt=1))
    assert progress.state().rows == 50


def test_statistics_are_of_ended_and_running_workers() -> None:
    progress = Progress()
    progress.update(report("chunk 1 task 0", 50, done=True))
    progress.update(report("chunk 2 task 0", 30))
    assert progress.statistics() == ScoringStatistics(rows=80, errors=2)
    assert progress.statistics() == ScoringStatistics(rows=80, errors=2)


def test_devices_are_told_not_tasks() -> None:
    progress = Progress(clock=(clock := Clock()))
    for number in range(10):
        progress.update(report(f"chunk 0 task {number}", 5, done=True, device="cuda:1 on a"))
    progress.update(report("chunk 1 task 0", 7, device="cuda:0 on a"))
    clock.now += 10
    progress.update(report("chunk 1 task 1", 100, device="cuda:1 on a"))
    first, second = progress.devices
    assert (first.device, first.rows, first.rows_per_s) == ("cuda:0 on a", 7, 0.0)
    assert (second.device, second.rows) == ("cuda:1 on a", 150)
    assert second.rows_per_s == pytest.approx((150 - 5) / 10)


def test_a_worker_that_moves_to_another_device_is_counted_once() -> None:
    progress = Progress()
    progress.update(report("task 0", 40, device="cpu on a"))
    progress.update(report("task 0", 60, attempt=1, device="cpu on b"))
    assert [(one.device, one.rows) for one in progress.devices] == [
        ("cpu on a", 0),
        ("cpu on b", 60),
    ]


def test_memory_stays_flat_over_a_hundred_thousand_workers() -> None:
    progress = Progress(total_rows=10**9, clock=(clock := Clock()))
    for number in range(100_000):
        clock.now += 0.1
        progress.update(report(f"chunk {number // 8} task {number % 8}", 3))
        progress.update(report(f"chunk {number // 8} task {number % 8}", 5, done=True))
    assert progress.state().rows == 500_000
    assert progress.statistics().rows == 500_000
    assert not progress._running
    assert len(progress._ended) == MAX_WORKER_NAMES
    assert len(progress._devices) == 1
    for recent in (progress._recent, progress._devices["cpu on here"].recent):
        assert len(recent._samples) <= 2 * RATE_WINDOW_S + 2


def test_memory_stays_flat_where_no_worker_is_heard_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_module, "MAX_WORKER_NAMES", 10)
    progress = Progress()
    for number in range(1000):
        progress.update(report(f"chunk {number} task 0", 5))
    assert progress.state().rows == 5000
    assert progress.statistics().rows == 5000
    assert len(progress._running) == len(progress._ended) == 10


def test_recorded_rows_count_where_workers_cannot_report() -> None:
    progress = Progress(total_rows=100, total_chunks=10)
    progress.skip(20, 2)
    progress.commit(10, 3)
    state = progress.state()
    assert (state.rows, state.skipped_rows, state.chunks, state.errors) == (30, 20, 3, 3)


def test_reported_rows_run_ahead_of_recorded_ones_and_are_not_counted_twice() -> None:
    progress = Progress(total_rows=100, total_chunks=10)
    progress.skip(20, 2)
    progress.update(report("chunk 2 task 0", 10, done=True))
    progress.update(report("chunk 3 task 0", 5))
    progress.commit(10, 1)
    state = progress.state()
    assert (state.rows, state.chunks, state.errors) == (35, 3, 2)


def test_rows_are_never_more_than_the_total() -> None:
    progress = Progress(total_rows=100)
    progress.skip(90, 1)
    progress.update(report("chunk 1 task 0", 25))
    assert progress.state().rows == 100


def test_a_run_that_goes_on_does_not_count_the_rows_of_the_earlier_one_in_its_rate() -> None:
    progress = Progress(total_rows=1_000_000, clock=(clock := Clock()))
    progress.skip(900_000, 90)
    clock.now += 60  # workers start
    feed(progress, clock, range(100, 2100, 100))
    state = progress.state()
    assert state.rows == 902_000
    assert state.rows_per_s == pytest.approx(100)
    assert state.rows_per_s_now == pytest.approx(100)
    assert state.eta_s == pytest.approx(98_000 / 100)


def test_chunks_that_are_skipped_on_the_way_do_not_count_in_the_rate() -> None:
    progress = Progress(total_rows=10_000, clock=(clock := Clock()))
    feed(progress, clock, range(10, 110, 10))
    progress.skip(5000, 5)
    feed(progress, clock, range(110, 210, 10))
    assert progress.state().rows_per_s == pytest.approx(10)
    assert progress.state().rows_per_s_now == pytest.approx(10)


def test_start_up_does_not_count_in_the_rate() -> None:
    progress = Progress(total_rows=1000, clock=(clock := Clock()))
    clock.now += 300
    feed(progress, clock, range(10, 110, 10))
    assert progress.state().rows_per_s == pytest.approx(10)
    assert progress.state().elapsed_s == pytest.approx(310)


def test_the_rate_now_looks_back_half_a_minute() -> None:
    progress = Progress(clock=(clock := Clock()))
    feed(progress, clock, range(10, 1010, 10))
    feed(progress, clock, range(1050, 1050 + 40 * 50, 50))
    state = progress.state()
    assert state.rows_per_s_now == pytest.approx(50, rel=0.05)
    assert state.rows_per_s < 30


def test_the_rate_now_is_zero_after_half_a_minute_without_rows() -> None:
    progress = Progress(clock=(clock := Clock()))
    feed(progress, clock, range(10, 1010, 10), every_s=0.3)
    clock.now += RATE_WINDOW_S + 1
    assert progress.state().rows_per_s_now == 0.0
    assert progress.state().rows_per_s > 0


def test_reports_that_come_together_make_no_huge_rate() -> None:
    progress = Progress(total_rows=10_000, clock=(clock := Clock()))
    for number in range(8):
        clock.now += 0.001
        progress.update(report(f"task {number}", 100))
    assert progress.state().rows_per_s == 700.0
    assert progress.state().eta_s is None


def test_a_dead_attempt_makes_no_negative_rate() -> None:
    progress = Progress(total_rows=1000, clock=(clock := Clock()))
    feed(progress, clock, range(10, 210, 10))
    progress.update(report("task 0", 0, attempt=1))
    state = progress.state()
    assert (state.rows, state.rows_per_s, state.rows_per_s_now) == (0, 0.0, 0.0)
    assert state.eta_s is None


def test_the_time_left_is_not_told_before_it_can_be() -> None:
    progress = Progress(total_rows=1000, clock=(clock := Clock()))
    assert progress.state().eta_s is None
    feed(progress, clock, [10, 20])
    assert progress.state().eta_s is None
    feed(progress, clock, range(30, 30 + 10 * int(ETA_AFTER_S), 10))
    eta = progress.state().eta_s
    assert eta == pytest.approx((1000 - 70) / 10)


def test_the_time_left_is_not_told_without_a_total() -> None:
    progress = Progress(clock=(clock := Clock()))
    feed(progress, clock, range(10, 210, 10))
    assert progress.state().eta_s is None


@pytest.mark.parametrize("pause_s", [1.0, 20.0, RATE_WINDOW_S, 45.0])
def test_a_pause_between_chunks_moves_the_time_left_by_little(pause_s: float) -> None:
    progress = Progress(total_rows=100_000, clock=(clock := Clock()))
    feed(progress, clock, range(10, 6010, 10))
    before = progress.state().eta_s
    clock.now += pause_s
    after = progress.state().eta_s
    assert before is not None
    assert after is not None
    assert before <= after < 1.5 * before


def test_a_change_of_speed_shows_in_the_time_left_at_once() -> None:
    progress = Progress(total_rows=100_000, clock=(clock := Clock()))
    feed(progress, clock, range(10, 6010, 10))
    feed(progress, clock, range(6020, 6020 + 30 * 20, 20))
    state = progress.state()
    remaining = 100_000 - state.rows
    assert state.eta_s is not None
    assert remaining / 20 < state.eta_s < 0.75 * remaining / state.rows_per_s


def test_the_time_left_is_zero_only_when_all_rows_are_recorded() -> None:
    progress = Progress(total_rows=200, clock=(clock := Clock()))
    progress.skip(100, 1)
    feed(progress, clock, range(10, 110, 10))
    assert progress.state().rows == 200
    assert progress.state().eta_s is None
    progress.commit(100, 0)
    assert progress.state().eta_s == 0.0


def test_the_end_of_a_run_stops_its_clock() -> None:
    progress = Progress(total_rows=100, clock=(clock := Clock()))
    progress.enter(SCORE)
    feed(progress, clock, range(10, 110, 10))
    progress.end()
    ended = progress.state()
    clock.now += 100
    assert progress.state() == ended
    assert (ended.phase, ended.elapsed_s) == ("", 10.0)
    assert progress.phases == {SCORE: 10.0}


def test_the_share_of_padding_is_over_all_workers() -> None:
    progress = Progress()
    for name, done in (("a", True), ("b", False)):
        statistics = ScoringStatistics(rows=1, tokens=30, padded_tokens=40)
        progress.update(WorkerReport(name, 0, "cpu", statistics, done))
    assert progress.state().padding_share == pytest.approx(0.25)


def test_updates_from_many_threads_are_all_counted() -> None:
    progress = Progress(total_chunks=400)

    def work(thread: int) -> None:
        for number in range(100):
            progress.update(report(f"{thread} {number}", 1))
            progress.update(report(f"{thread} {number}", 2, done=True))
            progress.commit(2, 0)
            progress.state()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.state().rows == 800
    assert progress.state().chunks == 400


def test_what_hosts_are_reaches_the_driver_with_the_gpus_of_all_their_workers() -> None:
    progress = Progress()
    server = ProgressServer(progress.update, "127.0.0.1")
    for number in range(2):
        client = ProgressClient(server.address, f"task {number}", 0, f"cuda:{number} on gpu7")
        client.runs_on({"name": "gpu7", "cores": 8, "gpus": {f"cuda:{number}": "H100"}})
        client.finish(ScoringStatistics(rows=1))
        client.close()
    server.close()
    assert progress.hosts == {"gpu7": {"cores": 8, "gpus": {"cuda:0": "H100", "cuda:1": "H100"}}}


def test_workers_that_ended_before_their_time_are_counted() -> None:
    progress = Progress()
    progress.lose_worker()
    progress.lose_worker()
    assert progress.lost_workers == 2


def test_seconds_add_up_by_phase_in_the_order_of_their_start() -> None:
    progress = Progress(clock=(clock := Clock()))
    progress.enter(CHECKS)
    clock.now += 2
    with progress.during(MODEL):
        clock.now += 3
        assert (progress.state().phase, progress.state().phase_s) == (MODEL, 3.0)
    clock.now += 1
    assert (progress.state().phase, progress.state().phase_s) == (CHECKS, 1.0)
    assert progress.phases == {CHECKS: 3.0, MODEL: 3.0}
    progress.end()
    clock.now += 10
    assert list(progress.phases.items()) == [(CHECKS, 3.0), (MODEL, 3.0)]
    assert progress.elapsed_s == 6.0


def test_a_phase_that_fails_ends_as_well() -> None:
    progress = Progress()
    progress.enter(CHECKS)
    with pytest.raises(RuntimeError), progress.during(MODEL):
        raise RuntimeError
    assert progress.phase == CHECKS


def test_loading_ends_with_the_first_rows() -> None:
    progress = Progress(clock=(clock := Clock()))
    progress.enter(LOAD)
    clock.now += 4
    progress.update(report("task 0", 0))
    assert progress.phase == LOAD
    clock.now += 1
    progress.update(report("task 0", 10))
    clock.now += 2
    progress.end()
    assert progress.phases == {LOAD: 5.0, SCORE: 2.0}


def test_loading_ends_with_a_chunk_of_workers_that_do_not_report() -> None:
    progress = Progress()
    progress.enter(LOAD)
    progress.commit(10, 0)
    assert progress.phase == SCORE


def test_another_part_of_a_run_is_counted_from_nothing_and_devices_keep_their_sums() -> None:
    progress = Progress(total_rows=20, total_chunks=1)
    progress.update(report("chunk 0", 20, done=True))
    progress.commit(20, 1)
    progress.expect(100, 5)
    state = progress.state()
    assert (state.rows, state.chunks, state.errors, state.devices) == (0, 0, 0, ())
    assert (state.total_rows, state.total_chunks) == (100, 5)
    progress.update(report("chunk 1", 30))
    progress.update(report("chunk 2", 5, device="cuda:0 on there"))
    assert progress.state().rows == 35
    assert {one.device: one.rows for one in progress.devices} == {
        "cpu on here": 50, "cuda:0 on there": 5,
    }  # fmt: skip
    assert progress.statistics().rows == 55
