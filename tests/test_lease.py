"""Processes, and where that is enough leases of one process, ask for one output folder."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sparkinfer import exclusive, storage
from sparkinfer.exceptions import JobError, OutputError
from sparkinfer.jobs import claims
from sparkinfer.jobs import lease as module
from sparkinfer.jobs.claims import read_holder
from sparkinfer.jobs.lease import Lease, LeaseLostError

WAIT_S = 20.0
NEVER_S = 600.0
QUICK = {"beat_s": 0.05, "lost_after_s": 1.0, "settle_s": 0.1, "give_up_after_s": 0.5}
SILENT = {"beat_s": NEVER_S, "lost_after_s": NEVER_S}

HOLDER_PROCESS = """
import json, sys
from sparkinfer.exceptions import SparkInferError
from sparkinfer.jobs.lease import Lease

for line in sys.stdin:
    command, *values = json.loads(line)
    try:
        if command == "acquire":
            lease = Lease(values[0], **values[1])
            lease.acquire()
            answer = ["held", lease.epoch]
        else:
            getattr(lease, command)()
            answer = ["done", command]
    except SparkInferError as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


class Process:
    """Another process that does with a lease what it is told."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", HOLDER_PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self._stdin, self._stdout = self.popen.stdin, self.popen.stdout

    def tell(self, *command: Any) -> None:
        self._stdin.write(json.dumps(command) + "\n")
        self._stdin.flush()

    def answer(self) -> list[Any]:
        answer: list[Any] = json.loads(self._stdout.readline())
        return answer

    def ask(self, *command: Any) -> list[Any]:
        self.tell(*command)
        return self.answer()

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.popen.pid, os.WSTOPPED | os.WNOWAIT)
        if number == signal.SIGKILL:
            os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()


@pytest.fixture
def start() -> Iterator[Callable[[], Process]]:
    processes: list[Process] = []

    def start_one() -> Process:
        processes.append(Process())
        return processes[-1]

    yield start_one
    for process in processes:
        process.end()


@pytest.fixture
def leases() -> Iterator[Callable[..., Lease]]:
    """Makes leases that are released at the end, so that no thread outlives the test."""
    made: list[Lease] = []

    def make(folder: Any, **options: Any) -> Lease:
        made.append(Lease(str(folder), **{**QUICK, **options}))
        return made[-1]

    yield make
    for lease in made:
        lease.release()


@pytest.fixture
def in_memory() -> Iterator[str]:
    """A lease folder on a store without atomic renames."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket/out/_sparkinfer/lease"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were looked at so far."""
    seen: list[int] = []
    look = module.look_into

    def note(folder: str) -> Any:
        found = look(folder)
        seen.append(found.epoch)
        return found

    monkeypatch.setattr(module, "look_into", note)
    return seen


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


def beat_of(folder: Any, epoch: int = 1) -> int:
    text = claims.read_claim(claims.epoch_file(str(folder), epoch))
    return int(json.loads(text or "{}")["beat"])


def leave_holder(folder: Path, **values: Any) -> None:
    """Leaves what a process that died left there: by default one of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    claim = replace(claims.new_claim(), token="another", **values)
    (folder / "epoch-00000001.json").write_text(claims.text_of(claim))


def test_a_second_process_is_refused_while_the_first_lives(
    tmp_path: Path, start: Callable[[], Process], leases: Callable[..., Lease]
) -> None:
    folder = tmp_path / "out" / "_sparkinfer" / "lease"
    first = start()
    assert first.ask("acquire", str(folder), QUICK) == ["held", 1]
    with pytest.raises(OutputError) as raised:
        leases(folder).acquire()
    message = str(raised.value)
    assert f"output {str(tmp_path / 'out')!r} is being written" in message
    assert f"process {first.popen.pid} on {socket.gethostname()} (epoch 1, since 20" in message
    assert "wait for that run, end that process, or name another folder" in message
    assert first.ask("check") == ["done", "check"]


def test_the_lease_of_a_killed_process_is_taken_at_once(
    tmp_path: Path, start: Callable[[], Process], leases: Callable[..., Lease]
) -> None:
    first = start()
    first.ask("acquire", str(tmp_path), QUICK)
    first.signal(signal.SIGKILL)  # it stays a zombie: nobody has asked for its end
    lease = leases(tmp_path, **SILENT)
    lease.acquire()
    assert lease.epoch == 2
    lease.check()


def test_a_holder_that_was_stopped_too_long_finds_its_lease_lost(
    tmp_path: Path, start: Callable[[], Process], leases: Callable[..., Lease]
) -> None:
    first = start()
    first.ask("acquire", str(tmp_path), QUICK)
    first.signal(signal.SIGSTOP)
    lease = leases(tmp_path)
    lease.acquire()
    assert lease.epoch == 2
    first.signal(signal.SIGCONT)
    kind, message = first.ask("check")
    assert kind == "LeaseLostError"
    assert f"process {os.getpid()} on" in message
    assert "has taken over" in message
    first.ask("release")
    lease.check()
    assert read_holder(str(tmp_path)).released is False  # type: ignore[union-attr]
    assert not json.loads((tmp_path / "epoch-00000001.json").read_text())["released"]


def test_a_holder_that_was_stopped_for_a_moment_goes_on(
    tmp_path: Path,
    start: Callable[[], Process],
    leases: Callable[..., Lease],
    looks: list[int],
) -> None:
    first = start()
    first.ask("acquire", str(tmp_path), {**QUICK, "lost_after_s": NEVER_S})
    first.signal(signal.SIGSTOP)

    def wake() -> None:
        wait_until(lambda: len(looks) > 5)
        first.signal(signal.SIGCONT)

    waker = threading.Thread(target=wake)
    waker.start()
    with pytest.raises(OutputError, match="is being written"):
        leases(tmp_path, lost_after_s=NEVER_S).acquire()
    waker.join()
    assert first.ask("check") == ["done", "check"]


@pytest.mark.parametrize("left", ["nothing", "silent holder", "damaged file", "released"])
def test_of_two_processes_one_wins(tmp_path: Path, start: Callable[[], Process], left: str) -> None:
    pair = [start(), start()]
    for number in range(5):
        folder = tmp_path / str(number)
        if left != "nothing":
            leave_holder(folder, host="elsewhere", released=left == "released")
        if left == "damaged file":
            (folder / "epoch-00000001.json").write_text('{"host": "else')
        for process in pair:
            process.tell("acquire", str(folder), {**QUICK, "lost_after_s": 0.2})
        answers = [process.answer() for process in pair]
        assert sorted(kind for kind, _ in answers) == ["OutputError", "held"], answers
        assert ["held", 1 if left == "nothing" else 2] in answers
        winner = pair[0] if answers[0][0] == "held" else pair[1]
        assert winner.ask("check") == ["done", "check"]
        assert winner.ask("release") == ["done", "release"]


def test_epochs_grow_over_runs_and_only_the_last_two_stay(
    tmp_path: Path, leases: Callable[..., Lease]
) -> None:
    for epoch in range(1, 5):
        (tmp_path / f"epoch-{epoch - 1:08d}.json.left").write_text("by a killed process")
        with leases(tmp_path, **SILENT) as lease:
            assert lease.epoch == epoch
            lease.check()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-00000003.json",
        "epoch-00000004.json",
    ]


def test_a_lease_can_be_released_twice_and_acquired_again(
    tmp_path: Path, leases: Callable[..., Lease]
) -> None:
    lease = leases(tmp_path, **SILENT)
    lease.release()
    lease.acquire()
    with pytest.raises(RuntimeError, match="release it first"):
        lease.acquire()
    lease.release()
    lease.release()
    with pytest.raises(LeaseLostError, match=f"is not leased by process {os.getpid()}"):
        lease.check()
    lease.acquire()
    assert lease.epoch == 2


def test_a_heartbeat_grows(tmp_path: Path, leases: Callable[..., Lease]) -> None:
    with leases(tmp_path):
        wait_until(lambda: beat_of(tmp_path) >= 3)


@pytest.mark.parametrize(
    "content", [b"", b'{"host": "a', b"[]", b'{"host": 1}', b"\xff\xfe", b'{"beat": NaN}']
)
def test_a_damaged_file_is_a_holder_that_does_not_beat(
    tmp_path: Path, leases: Callable[..., Lease], looks: list[int], content: bytes
) -> None:
    (tmp_path / "epoch-00000007.json").write_bytes(content)
    lease = leases(tmp_path, lost_after_s=0.2)
    lease.acquire()
    assert lease.epoch == 8
    assert len(looks) > 3


def test_a_pid_that_was_given_to_another_process_is_no_holder(
    tmp_path: Path, leases: Callable[..., Lease]
) -> None:
    leave_holder(tmp_path, pid=os.getpid(), start_id="1")
    leases(tmp_path, **SILENT).acquire()


@pytest.mark.parametrize(
    "elsewhere", [{"host": "elsewhere"}, {"place": "another container"}, {"place": ""}]
)
def test_a_pid_of_another_machine_tells_nothing(
    tmp_path: Path,
    leases: Callable[..., Lease],
    looks: list[int],
    elsewhere: dict[str, str],
) -> None:
    leave_holder(tmp_path, pid=2**22 + 1, start_id="1", **elsewhere)
    leases(tmp_path, lost_after_s=0.2).acquire()
    assert len(looks) > 3


def test_where_processes_cannot_be_told_apart_the_holder_is_watched(
    tmp_path: Path,
    leases: Callable[..., Lease],
    looks: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "_place", lambda: "")
    leave_holder(tmp_path, pid=2**22 + 1, start_id="1")
    leases(tmp_path, lost_after_s=0.2).acquire()
    assert len(looks) > 3


def test_a_takeover_is_logged(
    tmp_path: Path, leases: Callable[..., Lease], caplog: pytest.LogCaptureFixture
) -> None:
    leave_holder(tmp_path, pid=2**22 + 1)
    with caplog.at_level(logging.WARNING):
        leases(tmp_path).acquire()
    assert f"process {2**22 + 1} on {socket.gethostname()} (epoch 1" in caplog.text
    assert "is gone; taking over" in caplog.text


def test_a_holder_whose_store_fails_stops_for_good(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    lease = leases(tmp_path, clock=clock, beat_s=NEVER_S, lost_after_s=10.0)
    lease._retry_s = 0.01
    lease.acquire()
    with monkeypatch.context() as broken:
        broken.setattr(module, "replace_text", _fail)
        clock.now_s = 4.9
        lease.check()
        clock.now_s = 5.1
        with pytest.raises(LeaseLostError, match=r"no heartbeat .* for 5 s \(the store fails\)"):
            lease.check()
    with pytest.raises(LeaseLostError, match="is lost"):
        lease.check()
    lease.release()
    assert read_holder(str(tmp_path)).released is False  # type: ignore[union-attr]


def test_a_holder_that_cannot_look_for_others_stops(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = leases(tmp_path, lost_after_s=0.4)
    lease.acquire()
    monkeypatch.setattr(module, "epochs_in", _fail)
    with pytest.raises(LeaseLostError, match="the store fails"):
        lease.check()


def test_a_holder_whose_store_hangs_stops(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, repaired = threading.Event(), threading.Event()

    def hang(path: str, text: str) -> None:
        hangs.set()
        repaired.wait(WAIT_S)

    lease = leases(tmp_path, lost_after_s=0.4)
    with monkeypatch.context() as broken:
        broken.setattr(module, "replace_text", hang)
        lease.acquire()
        assert hangs.wait(WAIT_S)
        wait_until(lease._is_stale)
        try:
            with pytest.raises(LeaseLostError, match="the store does not answer"):
                lease.check()
        finally:
            repaired.set()
        lease.release()


def test_a_heartbeat_is_tried_again(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter(range(3))
    replace_text = storage.replace_text

    def fail_at_first(path: str, text: str) -> None:
        if next(failures, None) is not None:
            raise OSError("the store fails")
        replace_text(path, text)

    monkeypatch.setattr(module, "replace_text", fail_at_first)
    with leases(tmp_path) as lease:
        wait_until(lambda: beat_of(tmp_path) > 0)
        lease.check()


def test_a_holder_that_slept_and_was_not_missed_goes_on(
    tmp_path: Path, leases: Callable[..., Lease]
) -> None:
    clock = Clock()
    with leases(tmp_path, clock=clock, **SILENT) as lease:
        clock.now_s = 10 * NEVER_S
        lease.check()
        assert beat_of(tmp_path) == 1


def test_who_takes_over_steps_back_if_the_holder_wakes_up(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = leases(tmp_path)
    holder.acquire()
    holder._lock.acquire()  # it stops beating ...
    create = module.create_exclusively

    def wake_holder(file: str, text: str, **options: Any) -> bool:
        created = create(file, text, **options)
        before = beat_of(tmp_path)
        holder._lock.release()
        wait_until(lambda: beat_of(tmp_path) > before)
        return created

    monkeypatch.setattr(module, "create_exclusively", wake_holder)
    # ... and has looked for others just before it fell asleep.
    monkeypatch.setattr(Lease, "_find_loss", lambda lease: None)
    with pytest.raises(OutputError, match="is being written"):
        leases(tmp_path).acquire()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("*.json")] == ["epoch-00000001.json"]
    holder.check()


def test_who_slept_before_its_claim_steps_back(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = leases(tmp_path)
    create = module.create_exclusively

    def sleep_over_five_runs(file: str, text: str, **options: Any) -> bool:
        monkeypatch.undo()
        for _ in range(4):
            with leases(tmp_path):
                pass
        holder.acquire()
        return create(file, text, **options)

    monkeypatch.setattr(module, "create_exclusively", sleep_over_five_runs)
    with pytest.raises(OutputError, match="epoch 5"):
        leases(tmp_path).acquire()
    assert not (tmp_path / "epoch-00000001.json").exists()
    holder.check()


def test_jumps_of_the_wall_clock_do_not_matter(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.cycle([0.0, 1e9, -1e6, 4e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    with leases(tmp_path) as lease:
        with pytest.raises(OutputError, match="is being written"):
            leases(tmp_path).acquire()
        lease.check()


def test_time_without_looks_is_not_taken_for_silence(
    tmp_path: Path, leases: Callable[..., Lease]
) -> None:
    jumps = itertools.count(0, 1000)  # as if both were suspended between any two looks
    with leases(tmp_path), pytest.raises(OutputError, match="is being written"):
        leases(tmp_path, clock=lambda: float(next(jumps))).acquire()


def test_a_lease_whose_file_is_removed_is_lost(
    tmp_path: Path, leases: Callable[..., Lease]
) -> None:
    lease = leases(tmp_path, **SILENT)
    lease.acquire()
    (tmp_path / "epoch-00000001.json").unlink()
    with pytest.raises(LeaseLostError, match="its file was removed"):
        lease.check()


def test_a_later_epoch_is_seen_where_a_listing_misses_it(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = leases(tmp_path, **SILENT)
    lease.acquire()
    (tmp_path / "epoch-00000002.json").write_text("{")
    monkeypatch.setattr(module, "epochs_in", lambda folder: {1})
    with pytest.raises(LeaseLostError, match="file is damaged .epoch 2. has taken over"):
        lease.check()


def test_a_forked_child_neither_beats_nor_releases(
    tmp_path: Path, leases: Callable[..., Lease]
) -> None:
    with leases(tmp_path) as lease:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                lease.release()
                lease.check()
            except LeaseLostError:
                code = 0 if threading.active_count() == 1 else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        lease.check()
        assert read_holder(str(tmp_path)).released is False  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, leases: Callable[..., Lease]
) -> None:
    (tmp_path / "_sparkinfer").write_text("a file")
    folder = tmp_path / "_sparkinfer" / "lease"
    with pytest.raises(OutputError, match=f"output {str(tmp_path)!r} cannot be leased .* fix"):
        leases(folder).acquire()


def test_without_hard_links_a_claim_has_to_settle(
    tmp_path: Path, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", _fail)
    with leases(tmp_path) as lease:
        lease.check()
        with pytest.raises(OutputError, match="is being written"):
            leases(tmp_path).acquire()
    leave_holder(tmp_path / "raced", host="elsewhere")
    with leases(tmp_path / "raced", lost_after_s=0.2) as lease:
        path = tmp_path / "raced" / "epoch-00000002.json"
        path.write_text((tmp_path / "raced" / "epoch-00000001.json").read_text())
        with pytest.raises(LeaseLostError, match="on elsewhere .* has claimed the same epoch"):
            lease.check()


def test_the_error_of_a_lost_lease_survives_pickling() -> None:
    copied = pickle.loads(pickle.dumps(LeaseLostError("the lease is lost")))
    assert type(copied) is LeaseLostError
    assert isinstance(copied, JobError)
    assert copied.message == str(copied) == "the lease is lost"


def test_the_holder_can_be_read(tmp_path: Path, leases: Callable[..., Lease]) -> None:
    folder = str(tmp_path / "lease")
    assert read_holder(folder) is None
    with leases(folder):
        holder = read_holder(folder)
        assert holder is not None
        assert (holder.epoch, holder.host) == (1, socket.gethostname())
        assert (holder.pid, holder.released) == (os.getpid(), False)
        assert holder.since is not None
        assert holder.since_beat_s is not None
        assert 0 <= holder.since_beat_s < WAIT_S
    assert read_holder(folder).released is True  # type: ignore[union-attr]
    (tmp_path / "lease" / "epoch-00000002.json").write_text("{")
    holder = read_holder(folder)
    assert holder is not None
    assert (holder.epoch, holder.host, holder.pid, holder.released) == (2, None, None, False)


def test_a_store_may_not_tell_when_a_file_was_changed(
    in_memory: str, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    with leases(in_memory):
        assert read_holder(in_memory).since_beat_s < WAIT_S  # type: ignore[union-attr, operator]
        monkeypatch.setattr(MemoryFileSystem, "modified", _fail)
        assert read_holder(in_memory).since_beat_s is None  # type: ignore[union-attr]


@pytest.fixture(params=["conditional", "settling", "ignoring"])
def store(request: pytest.FixtureRequest, in_memory: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that creates exclusively, one that does not and one that claims to."""
    kind: str = request.param
    if kind == "conditional" and not _memory_creates_exclusively():
        pytest.skip(f"fsspec {fsspec.__version__} cannot create exclusively in memory")
    if kind != "settling":
        monkeypatch.setattr(exclusive, "STORES_THAT_CREATE_EXCLUSIVELY", frozenset({"memory"}))
    if kind == "ignoring":
        pipe_file = MemoryFileSystem.pipe_file

        def ignore_mode(fs: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
            pipe_file(fs, path, value)

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", ignore_mode)
    return in_memory


def test_a_store_has_one_holder_at_a_time(store: str, leases: Callable[..., Lease]) -> None:
    for epoch in (1, 2, 3, 4):
        with leases(store) as lease:
            assert lease.epoch == epoch
            lease.check()
            with pytest.raises(OutputError, match=r"output 'memory://bucket/out' is being written"):
                leases(store).acquire()
    assert sorted(claims.epochs_in(store)) == [3, 4]


def test_on_a_store_a_silent_holder_finds_its_lease_lost(
    store: str, leases: Callable[..., Lease]
) -> None:
    silent = leases(store, **SILENT)
    silent.acquire()
    lease = leases(store, lost_after_s=0.3)
    lease.acquire()
    assert lease.epoch == 2
    with pytest.raises(LeaseLostError, match="has taken over"):
        silent.check()
    lease.check()


def test_on_a_store_a_lease_whose_file_is_removed_is_lost(
    store: str, leases: Callable[..., Lease]
) -> None:
    lease = leases(store, **SILENT)
    lease.acquire()
    storage.remove(claims.epoch_file(store, 1))
    with pytest.raises(LeaseLostError, match="its file was removed"):
        lease.check()


def test_a_store_that_creates_exclusively_is_not_waited_for(
    store: str,
    leases: Callable[..., Lease],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    sleeps: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    leases(store, settle_s=1234.0).acquire()
    conditional = "conditional" in request.node.name
    assert sleeps == ([] if conditional else [1234.0])


def test_where_claims_settle_the_last_one_wins(
    in_memory: str, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    both_looked = threading.Barrier(2)
    write_text = storage.write_text

    def write_after_both_looked(file: str, text: str) -> None:
        both_looked.wait(WAIT_S)
        write_text(file, text)

    monkeypatch.setattr(exclusive, "write_text", write_after_both_looked)
    outcomes: list[str] = []

    def compete(lease: Lease) -> None:
        try:
            lease.acquire()
            lease.check()
            outcomes.append(f"held {lease.epoch}")
        except OutputError:
            outcomes.append("refused")

    pair = [leases(in_memory, settle_s=0.3) for _ in range(2)]
    threads = [threading.Thread(target=compete, args=(lease,)) for lease in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(outcomes) == ["held 1", "refused"]


def test_a_claim_written_over_later_is_lost(in_memory: str, leases: Callable[..., Lease]) -> None:
    lease = leases(in_memory, **SILENT)
    lease.acquire()
    other = replace(claims.new_claim(), host="elsewhere", token=uuid.uuid4().hex)
    storage.write_text(claims.epoch_file(in_memory, 1), claims.text_of(other))
    with pytest.raises(LeaseLostError, match="on elsewhere .* has claimed the same epoch"):
        lease.check()


@pytest.mark.parametrize("answer", [FileExistsError("there"), OSError("reset")])
def test_a_claim_whose_answer_was_lost_stands(
    in_memory: str,
    leases: Callable[..., Lease],
    monkeypatch: pytest.MonkeyPatch,
    answer: OSError,
) -> None:
    monkeypatch.setattr(exclusive, "STORES_THAT_CREATE_EXCLUSIVELY", frozenset({"memory"}))
    pipe_file = MemoryFileSystem.pipe_file

    def write_and_fail(fs: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        pipe_file(fs, path, value)
        if mode == "create":
            raise answer

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", write_and_fail)
    with leases(in_memory) as lease:
        assert lease.epoch == 1
        lease.check()


def test_a_store_whose_client_cannot_create_exclusively_settles(
    in_memory: str, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exclusive, "STORES_THAT_CREATE_EXCLUSIVELY", frozenset({"memory"}))
    pipe_file = MemoryFileSystem.pipe_file

    def refuse(fs: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise TypeError("unknown parameter IfNoneMatch")
        pipe_file(fs, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with leases(in_memory) as lease:
        lease.check()


def test_a_claim_in_conflict_with_another_is_made_again_and_never_without_condition(
    in_memory: str, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exclusive, "STORES_THAT_CREATE_EXCLUSIVELY", frozenset({"memory"}))
    modes: list[str] = []
    pipe_file = MemoryFileSystem.pipe_file

    def conflict_at_first(fs: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        modes.append(mode)
        if len(modes) == 1:
            raise OSError("409 ConditionalRequestConflict")
        if mode == "create" and fs.exists(path):
            raise FileExistsError(path)
        pipe_file(fs, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", conflict_at_first)
    leases(in_memory, beat_s=2.0, lost_after_s=10.0).acquire()
    assert modes == ["create"] * 3  # the last one tries whether the store heeds the condition


def test_a_remembered_listing_is_not_relied_on(
    in_memory: str, leases: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered: dict[str, Any] = {}
    ls = MemoryFileSystem.ls

    def remember(fs: Any, path: str, **options: Any) -> Any:
        if path not in remembered:
            remembered[path] = ls(fs, path, **options)
        return remembered[path]

    monkeypatch.setattr(MemoryFileSystem, "ls", remember)
    monkeypatch.setattr(
        MemoryFileSystem, "invalidate_cache", lambda fs, path=None: remembered.pop(path, None)
    )
    silent = leases(in_memory, **SILENT)
    silent.acquire()
    silent.check()
    leases(in_memory, lost_after_s=0.3).acquire()
    with pytest.raises(LeaseLostError, match="has taken over"):
        silent.check()


def _memory_creates_exclusively() -> bool:
    return "mode" in inspect.signature(MemoryFileSystem.pipe_file).parameters


def _fail(*_: Any, **__: Any) -> Any:
    raise OSError("the store fails")
