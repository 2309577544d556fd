"""The driver and the ranks, here threads of one process, talk through a folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.engines.horovod import control, rank_beat, supervision
from sparkinfer.engines.horovod.chunk_commits import ChunkCommits, SharedChunk
from sparkinfer.engines.horovod.control import (
    DONE,
    SCORING,
    ControlFolderError,
    RankResult,
    RunAbortedError,
)
from sparkinfer.engines.horovod.prepare import PreparedFile
from sparkinfer.engines.horovod.rank_beat import RankBeat
from sparkinfer.engines.horovod.shares import Shares, deal_chunk, read_shares
from sparkinfer.engines.horovod.supervision import Supervisor
from sparkinfer.exceptions import JobError
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.ports import ChunkTask, ScoredChunk
from sparkinfer.rows.tally import Tally, WrittenFile
from sparkinfer.workers import steps

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "BEAT_S", 0.02)
    monkeypatch.setattr(supervision, "RANK_LOST_AFTER_S", 1.0)
    monkeypatch.setattr(rank_beat, "DRIVER_LOST_AFTER_S", 1.0)
    monkeypatch.setattr(supervision, "ABORT_GRACE_S", 0.1)


class Watch:
    """A supervisor over a folder, and what it called."""

    def __init__(self, folder: Path, world_size: int, start_timeout_s: float = WAIT_S) -> None:
        self.folder = str(folder)
        self.cancelled = threading.Event()
        self.scoring = threading.Event()
        self.told: list[RankResult] = []
        self.supervisor = Supervisor(
            self.folder,
            world_size,
            start_timeout_s,
            self.cancelled.set,
            self.scoring.set,
            self.told.append,
        )

    def results(self) -> list[RankResult]:
        """Returns what was told of, once the launch has ended well."""
        self.supervisor.conclude(None)
        return sorted(self.told, key=lambda result: (result.chunk, result.rank))

    def failure(self, launch_error: Exception | None = None) -> str:
        with pytest.raises(JobError) as raised:
            self.supervisor.conclude(launch_error)
        return str(raised.value)


def result_of(chunk: int, rank: int) -> RankResult:
    return RankResult(chunk, rank, f"rank-{rank}.parquet", asdict(Tally(rows=5 + rank)), 0.5)


def wait_for_abort(beat: RankBeat) -> str:
    """Does what a rank does between batches until it hears of an abort; returns the reason."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            beat.check()
        except RunAbortedError as error:
            return str(error)
        time.sleep(0.01)
    raise TimeoutError("no abort")


def test_a_start_that_takes_long_is_told_every_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(steps, "SAY_EVERY_S", 0.1)
    watch = Watch(tmp_path, 2)

    def told() -> list[str]:
        return [one for one in caplog.messages if one.startswith("still waiting for the ranks")]

    with caplog.at_level(logging.WARNING), watch.supervisor, RankBeat(watch.folder, 0) as beat:
        wait_until(
            lambda: "still waiting for the ranks (1 of 2 have started), for 0 min now" in told()
        )
        with RankBeat(watch.folder, 1) as other:
            wait_until(
                lambda: "still waiting for the ranks (2 of 2 have started), for 0 min now" in told()
            )
            other.enter(DONE)
        beat.enter(DONE)


def test_each_result_is_told_once_while_the_ranks_run(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor:
        for rank in range(2):
            with RankBeat(watch.folder, rank) as beat:
                beat.enter(SCORING)
                for chunk in (0, 3):
                    beat.add(result_of(chunk, rank))
                    wait_until(lambda: result_of(chunk, rank) in watch.told)  # noqa: B023
                beat.enter(DONE)
        time.sleep(5 * control.BEAT_S)
    assert watch.results() == [result_of(chunk, rank) for chunk in (0, 3) for rank in range(2)]
    assert watch.scoring.is_set()
    assert not watch.cancelled.is_set()


def test_results_that_come_with_the_last_look_are_told(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor:
        pass
    with RankBeat(watch.folder, 0) as beat:
        for chunk in range(3):
            beat.add(result_of(chunk, 0))
        beat.enter(DONE)
    assert watch.told == []
    assert watch.results() == [result_of(chunk, 0) for chunk in range(3)]


def test_what_ranks_wrote_before_one_failed_is_told(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor:
        pass
    with contextlib.suppress(ZeroDivisionError), RankBeat(watch.folder, 0) as beat:
        beat.add(result_of(0, 0))
        1 / 0  # noqa: B018
    assert "rank 0" in watch.failure()
    assert watch.told == [result_of(0, 0)]


def test_abort_ends_the_ranks_and_then_the_launch(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor, RankBeat(watch.folder, 0) as beat, RankBeat(watch.folder, 1) as other:
        watch.supervisor.abort("a chunk was not committed")
        assert wait_for_abort(beat) == wait_for_abort(other) == "a chunk was not committed"
        assert watch.cancelled.wait(WAIT_S)
    assert watch.failure(RuntimeError("cancelled")) == "a chunk was not committed"


def test_an_abort_while_the_supervisor_looks_for_a_failure_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(tmp_path, 1)
    monkeypatch.setattr(
        watch.supervisor,
        "_find_failure",
        lambda: watch.supervisor.abort("a chunk was not committed"),
    )
    with watch.supervisor, RankBeat(watch.folder, 0) as beat:
        assert wait_for_abort(beat) == "a chunk was not committed"


def test_an_exception_reaches_the_driver_with_its_rank_and_traceback(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor:
        with RankBeat(watch.folder, 0) as other:
            with pytest.raises(ZeroDivisionError), RankBeat(watch.folder, 1):
                1 / 0  # noqa: B018
            assert "rank 1" in wait_for_abort(other)
        assert watch.cancelled.wait(WAIT_S)
    with pytest.raises(
        JobError, match=r"rank 1 \(process \d+ on .*failed: ZeroDiv.*zero$"
    ) as raised:
        watch.supervisor.conclude(RuntimeError("exit 1"))
    assert "Traceback (most recent call last)" in str(raised.value.__cause__)
    assert "1 / 0" in str(raised.value.__cause__)


def test_a_rank_that_falls_silent_aborts_the_others(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor, RankBeat(watch.folder, 0) as beat:
        silent = {"state": SCORING, "host": "h", "pid": 7, "beat": 3}
        (tmp_path / "rank-00001.json").write_text(json.dumps(silent))
        assert "rank 1 (process 7 on h) has been silent" in wait_for_abort(beat)
    assert "rank 1 (process 7 on h) has been silent" in watch.failure()


def test_the_chunk_over_which_a_rank_died_is_told(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor:
        silent = {"state": SCORING, "host": "h", "pid": 7, "beat": 3, "chunk": 5}
        (tmp_path / "rank-00000.json").write_text(json.dumps(silent))
        wait_until_seen(watch.supervisor, 0)
    assert "ended without a report" in watch.failure()
    assert (watch.supervisor.has_died, watch.supervisor.deadly_chunks) == (True, (5,))


@pytest.mark.parametrize("hangs", [True, False])
def test_a_chunk_is_deadly_if_a_rank_hangs_over_it_and_not_if_it_raises(
    tmp_path: Path, hangs: bool
) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor, contextlib.suppress(ValueError), RankBeat(watch.folder, 0) as beat:
        beat.enter(SCORING)
        beat.begin(5)
        if hangs:
            beat.fail("no progress for 600 s", "stacks")
        raise ValueError("no progress for 600 s")
    assert "failed: " in watch.failure()
    assert watch.supervisor.has_died is hangs
    assert watch.supervisor.deadly_chunks == ((5,) if hangs else ())


def test_a_rank_that_is_done_may_be_silent(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2)
    with watch.supervisor, RankBeat(watch.folder, 0) as beat:
        with RankBeat(watch.folder, 1) as done:
            done.enter(DONE)
        silence_ends = time.monotonic() + 2 * supervision.RANK_LOST_AFTER_S
        while time.monotonic() < silence_ends:
            beat.check()
        beat.enter(DONE)
    assert watch.results() == []


def test_a_rank_that_does_not_start_in_time_fails_the_run(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2, start_timeout_s=0.5)
    with watch.supervisor, RankBeat(watch.folder, 1):
        wait_until_seen(watch.supervisor, 1)
        assert watch.cancelled.wait(WAIT_S)
    assert re.search(r"rank 0 did not start within 0 s \(. of 2 run\)", watch.failure())


def test_the_rank_that_fell_silent_first_is_named_when_the_launch_ends(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 3)
    with watch.supervisor:
        for rank in (2, 0, 1):
            state = {"state": SCORING, "host": "h", "pid": rank, "beat": 1}
            (tmp_path / f"rank-{rank:05d}.json").write_text(json.dumps(state))
            wait_until_seen(watch.supervisor, rank)
    assert "rank 2 (process 2 on h) ended without a report" in watch.failure(RuntimeError("exit 1"))


def wait_until_seen(supervisor: Supervisor, rank: int) -> None:
    wait_until(lambda: supervisor._ranks[rank] is not None)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not become true")
        time.sleep(0.01)


def test_a_launch_that_starts_no_rank_gives_the_launchers_reason(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor:
        pass
    assert watch.failure(RuntimeError("no slots")) == "no rank started: no slots"


def test_a_rank_that_spark_starts_again_does_not_run(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor:
        first = {"state": SCORING, "host": "h", "pid": 7, "beat": 3}
        (tmp_path / "rank-00000.json").write_text(json.dumps(first))
        wait_until_seen(watch.supervisor, 0)
        with pytest.raises(RunAbortedError), RankBeat(watch.folder, 0):
            pass
        assert watch.cancelled.wait(WAIT_S)
    assert "rank 0 (process 7 on h) died and was restarted" in watch.failure()


def test_a_rank_ends_when_its_driver_is_gone(tmp_path: Path) -> None:
    with RankBeat(str(tmp_path), 0) as beat:
        assert wait_for_abort(beat) == "the driver is gone"


def test_a_rank_ends_when_the_folder_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    folder.mkdir()
    with RankBeat(str(folder), 0) as beat:
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        assert wait_for_abort(beat) == f"{folder} is gone"


def test_a_folder_that_cannot_be_reached_for_a_moment_ends_nothing(tmp_path: Path) -> None:
    folder, away = tmp_path / "ranks", tmp_path / "away"
    folder.mkdir()
    watch = Watch(folder, 1)
    with watch.supervisor:
        folder.rename(away)
        time.sleep(10 * control.BEAT_S)
        away.rename(folder)
        with RankBeat(watch.folder, 0) as beat:
            beat.enter(DONE)
    assert watch.results() == []


def test_a_store_that_fails_now_and_then_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = itertools.cycle([None, OSError("timed out"), None, None, OSError("reset")])
    monkeypatch.setattr(control, "ATTEMPT_PAUSE_S", 0.01)
    for module in (control, rank_beat, supervision):
        for name in {"read_text", "replace_text", "names_in"} & vars(module).keys():
            monkeypatch.setattr(module, name, failing(getattr(module, name), failures))
    watch = Watch(tmp_path, 2)
    with watch.supervisor:
        beats = [start_beat(watch.folder, rank) for rank in range(2)]
        goes_on_until = time.monotonic() + 2 * supervision.RANK_LOST_AFTER_S
        while time.monotonic() < goes_on_until:
            for beat in beats:
                beat.check()
            time.sleep(control.BEAT_S)
        for rank, beat in enumerate(beats):
            beat.add(result_of(0, rank))
            beat.enter(DONE)
            beat.__exit__(None, None, None)
    assert watch.results() == [result_of(0, 0), result_of(0, 1)]


def failing(whole: Any, failures: Iterator[Exception | None]) -> Any:
    def act(*arguments: Any) -> Any:
        failure = next(failures)
        if failure is not None:
            raise failure
        return whole(*arguments)

    return act


def start_beat(folder: str, rank: int) -> RankBeat:
    """Starts a beat; its first look at the folder is not repeated if it fails."""
    for _ in range(10):
        try:
            return RankBeat(folder, rank).__enter__()
        except OSError:
            continue
    raise TimeoutError("the store always fails")


def test_a_folder_that_a_rank_cannot_reach_is_named(tmp_path: Path) -> None:
    folder = str(tmp_path / "elsewhere")
    with pytest.raises(ControlFolderError, match="elsewhere does not exist on .*same path"):
        RankBeat(folder, 0).__enter__()


def test_a_state_that_is_half_written_is_passed_over(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    (tmp_path / "rank-00000.json").write_text('{"state": "sco')
    with watch.supervisor:
        time.sleep(5 * control.BEAT_S)
    assert watch.failure() == "no rank started"


def test_a_result_that_is_half_written_is_told_once_it_is_whole(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 1)
    with watch.supervisor, RankBeat(watch.folder, 0) as beat:
        half = tmp_path / "results" / "00000000-00000.json"
        half.write_text('{"chunk": 0, "ra')
        time.sleep(5 * control.BEAT_S)
        assert watch.told == []
        beat.add(result_of(0, 0))
        beat.enter(DONE)
    assert watch.results() == [result_of(0, 0)]


ROW_GROUPS = st.lists(st.integers(0, 9999), max_size=20).map(
    lambda tokens: [PreparedFile(0, f"f{i}", i, 1, count) for i, count in enumerate(tokens)]
)


LOADS = st.lists(st.integers(0, 99_999), min_size=1, max_size=9)


@given(ROW_GROUPS, LOADS, st.booleans())
def test_every_row_group_of_a_chunk_is_dealt_to_one_rank(
    files: list[PreparedFile], loads: list[int], whole: bool
) -> None:
    shares = deal_chunk(files, loads, whole=whole)
    assert len(shares) == len(loads)
    assert Counter(file for share in shares for file in share) == Counter(files)
    if whole:
        assert sum(bool(share) for share in shares) <= 1


def row_group(chunk: int, tokens: int = 100) -> PreparedFile:
    return PreparedFile(chunk, f"f{chunk}", 0, 1, tokens)


def never() -> None:
    raise AssertionError("there is nothing to wait for")


def chunks_of(folder: Path, rank: int) -> list[int]:
    return [share.chunk for share in read_shares(str(folder), rank, never)]


def test_chunks_of_one_row_group_go_to_all_ranks_in_turn(tmp_path: Path) -> None:
    shares = Shares(str(tmp_path), 3)
    for chunk in range(6):
        assert shares.add(chunk, "s", [row_group(chunk)]) == 1
        shares.publish()
    shares.end()
    assert [chunks_of(tmp_path, rank) for rank in range(3)] == [[0, 3], [1, 4], [2, 5]]


def test_a_rank_that_is_slower_gets_less_of_what_comes_later(tmp_path: Path) -> None:
    shares = Shares(str(tmp_path), 2)
    for chunk in range(6):
        shares.add(chunk, "s", [row_group(chunk)])
    shares.publish()
    for chunk in (0, 2, 4):
        shares.done(chunk, 0)
    for chunk in range(6, 9):
        shares.add(chunk, "s", [row_group(chunk)])
    shares.publish()
    shares.end()
    assert chunks_of(tmp_path, 0) == [0, 2, 4, 6, 7, 8]
    assert chunks_of(tmp_path, 1) == [1, 3, 5]


def test_a_rank_waits_for_what_is_dealt_while_it_scores(tmp_path: Path) -> None:
    shares = Shares(str(tmp_path), 1)
    later = iter([lambda: None, lambda: deal_one(shares, 1), shares.end])
    found = read_shares(str(tmp_path), 0, lambda: next(later)())
    deal_one(shares, 0)
    assert [share.chunk for share in found] == [0, 1]
    assert list(later) == []


def deal_one(shares: Shares, chunk: int) -> None:
    shares.add(chunk, "s", [row_group(chunk)])
    shares.publish()


def test_a_file_that_is_half_written_is_not_read(tmp_path: Path) -> None:
    shares = Shares(str(tmp_path), 1)
    deal_one(shares, 0)
    shares.end()
    whole = {path: path.read_text() for path in tmp_path.iterdir()}
    for path, text in whole.items():
        path.write_text(text[: len(text) // 2])
    waits = iter(list(whole.items()))

    def write_another() -> None:
        path, text = next(waits)
        path.write_text(text)

    assert [share.chunk for share in read_shares(str(tmp_path), 0, write_another)] == [0]
    assert list(waits) == []


def test_an_abort_ends_a_ranks_wait_for_more(tmp_path: Path) -> None:
    (tmp_path / "shares").mkdir()
    watch = Watch(tmp_path / "ranks", 1)
    with watch.supervisor, RankBeat(watch.folder, 0) as beat:
        watch.supervisor.abort("the next rows could not be prepared")
        with pytest.raises(RunAbortedError, match="the next rows could not be prepared"):
            list(read_shares(str(tmp_path / "shares"), 0, beat.pause))


def test_more_is_wanted_once_a_rank_has_one_wave_left(tmp_path: Path) -> None:
    shares = Shares(str(tmp_path), 2)
    for chunk in range(4):
        shares.add(chunk, "s", [row_group(chunk)])
    assert shares.wait_until_wanted()  # the first wave is all that there is
    for chunk in range(4, 8):
        shares.add(chunk, "s", [row_group(chunk)])
    wanted = threading.Thread(target=shares.wait_until_wanted)
    wanted.start()
    shares.done(1, 1)
    shares.done(0, 0)
    wanted.join(5 * control.BEAT_S)
    assert wanted.is_alive()
    shares.done(2, 0)  # the other rank may be far behind
    wanted.join(WAIT_S)
    assert not wanted.is_alive()


def test_nothing_is_wanted_after_the_launch(tmp_path: Path) -> None:
    shares = Shares(str(tmp_path), 1)
    shares.add(0, "s", [row_group(0)])
    assert shares.wait_until_wanted()
    shares.close()
    assert not shares.wait_until_wanted()


class Commits:
    """Commits of chunks that ranks share, and what they called.

    Args:
        sharers: the ranks that have a share of each chunk, by the chunk's number.
        commit: taken in the place of one that notes the chunk.
    """

    def __init__(
        self, sharers: dict[int, Sequence[int]], commit: Callable[[ScoredChunk], None] | None = None
    ) -> None:
        self.committed: list[ScoredChunk] = []
        self.aborted: list[str] = []
        self.commit = commit or self.committed.append
        self.commits = ChunkCommits(self, self.aborted.append)
        for number, ranks in sharers.items():
            task = ChunkTask(Chunk(number, ()), f"s{number}")
            self.commits.expect(SharedChunk(task, len(ranks)))

    def add(self, chunk: int, rank: int, seconds: float = 0.5) -> None:
        self.commits.add(RankResult(chunk, rank, f"rank-{rank}", asdict(Tally(rows=1)), seconds))


def written(*ranks: int) -> tuple[WrittenFile, ...]:
    return tuple(WrittenFile(f"rank-{rank}", Tally(rows=1)) for rank in ranks)


def test_a_chunk_is_committed_when_all_ranks_that_share_it_have_written() -> None:
    of = Commits({4: (0, 1, 2), 5: (1,)})
    with of.commits:
        of.add(4, 2, seconds=3.0)
        of.add(4, 0)
        of.add(5, 1)
        wait_until(lambda: bool(of.committed))
        assert of.committed == [ScoredChunk(Chunk(5, ()), "s5", written(1), 0.5)]
        of.add(4, 1)
        wait_until(lambda: len(of.committed) == 2)
    assert of.committed[1] == ScoredChunk(Chunk(4, ()), "s4", written(0, 1, 2), seconds=3.0)
    assert of.aborted == []


def test_a_chunk_that_a_rank_did_not_finish_is_not_committed() -> None:
    of = Commits({0: (0, 1), 1: (0, 1)})
    with of.commits:
        for chunk, rank in ((0, 0), (1, 0), (0, 1)):
            of.add(chunk, rank)
    assert [scored.chunk.number for scored in of.committed] == [0]


def test_the_context_waits_for_what_is_being_committed() -> None:
    started, may_end, done = threading.Event(), threading.Event(), []

    def commit(scored: ScoredChunk) -> None:
        started.set()
        assert may_end.wait(WAIT_S)
        done.append(scored.chunk.number)

    of = Commits({0: (0,), 1: (0,)}, commit)
    with contextlib.suppress(JobError), of.commits:
        of.add(0, 0)
        of.add(1, 0)
        assert started.wait(WAIT_S)  # `add` did not wait
        threading.Timer(0.1, may_end.set).start()
        raise JobError("a rank failed")
    assert sorted(done) == [0, 1]


def refuse(scored: ScoredChunk) -> None:
    raise JobError(f"chunk {scored.chunk.number} refused")


def commit_and(of: Commits, act: Callable[[], None]) -> None:
    """Does something in the context of commits of which the first has failed."""
    with of.commits:
        of.add(0, 0)
        wait_until(lambda: bool(of.aborted))
        act()


def test_a_commit_that_fails_aborts_the_ranks_and_is_raised() -> None:
    tried = []

    def commit(scored: ScoredChunk) -> None:
        tried.append(scored.chunk.number)
        refuse(scored)

    of = Commits({0: (0,), 1: (0,)}, commit)
    with pytest.raises(JobError, match="^chunk 0 refused$"):
        commit_and(of, lambda: of.add(1, 0))
    assert of.aborted == ["committing a chunk failed: chunk 0 refused"]
    assert tried == [0]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (JobError("aborted"), JobError("chunk 0 refused")),
        (KeyboardInterrupt(), KeyboardInterrupt()),
    ],
    ids=["what the abort made of it is replaced", "an interrupt is not"],
)
def test_a_commit_that_failed_is_raised_unless_the_run_was_interrupted(
    error: BaseException, raised: BaseException
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(raised), match=f"^{raised}$"):
        commit_and(Commits({0: (0,)}, refuse), fail)
