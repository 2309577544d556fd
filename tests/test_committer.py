"""What a commit does when a store hesitates, and when several come at once."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import sparkinfer.jobs.insistence
import sparkinfer.jobs.records
import sparkinfer.sinks.parquet
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError
from sparkinfer.jobs.lease import LeaseLostError
from tests.disk import ids_of
from tests.made_up_engine import MadeUpEngine, job_of_eighty_rows, run_made_up


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time."""
    taken: list[float] = []
    monkeypatch.setattr(sparkinfer.jobs.insistence, "sleep", taken.append)
    return taken


def failing(times: int, error: OSError, whole: Any) -> Any:
    """Returns a function that raises the first times it is called with each of its arguments."""
    calls: Counter[Any] = Counter()

    def fail(*arguments: Any, **options: Any) -> Any:
        calls[arguments[0]] += 1
        if calls[arguments[0]] <= times:
            raise error
        return whole(*arguments, **options)

    return fail


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "the mount hesitates"), OSError("503 Slow Down"), TimeoutError("late")],
)
def test_a_store_that_hesitates_is_tried_again(
    config: ScoringConfig,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    error: OSError,
) -> None:
    move = sparkinfer.sinks.parquet.move
    monkeypatch.setattr(sparkinfer.sinks.parquet, "move", failing(2, error, move))
    result = run_made_up(config)
    assert (result.rows, result.metrics["labelled_rows"]) == (80, 68)
    assert ids_of(config.output) == list(range(80))
    assert pauses == [0.5, 2.0] * 4


def test_a_record_is_tried_again_too(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    create = sparkinfer.jobs.records.create_exclusively
    late = failing(1, OSError(errno.EBUSY, "busy"), create)
    monkeypatch.setattr(sparkinfer.jobs.records, "create_exclusively", late)
    assert run_made_up(config).rows == 80
    assert pauses == [0.5] * 4


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "no")]
)
def test_what_will_not_pass_is_not_tried_again(
    config: ScoringConfig,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    error: OSError,
) -> None:
    move = sparkinfer.sinks.parquet.move
    with monkeypatch.context() as patched:
        patched.setattr(sparkinfer.sinks.parquet, "move", failing(1, error, move))
        with pytest.raises(JobError, match=str(error.strerror)):
            run_made_up(config)
    assert pauses == []
    assert run_made_up(config).rows == 80


def test_a_lease_that_is_lost_meanwhile_ends_the_tries(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(seconds: float) -> None:
        lease = Path(str(config.output)) / "_sparkinfer" / "lease"
        claim = (lease / "epoch-00000001.json").read_text()
        (lease / "epoch-00000002.json").write_text(claim)

    monkeypatch.setattr(sparkinfer.jobs.insistence, "sleep", overtaken)
    error = OSError(errno.EIO, "the mount hesitates")
    move = sparkinfer.sinks.parquet.move
    monkeypatch.setattr(sparkinfer.sinks.parquet, "move", failing(1, error, move))
    with pytest.raises(LeaseLostError):
        run_made_up(config)
    assert ids_of(config.output) == []


class CutsFiles(MadeUpEngine):
    """Loses the end of what it has written of a chunk."""

    def _write(self, plan: Any, task: Any, table: Any) -> Any:
        files = super()._write(plan, task, table)
        path = Path(task.staging) / files[0].name
        path.write_bytes(path.read_bytes()[:-20])
        return files


def test_a_file_that_is_not_whole_is_not_published(config: ScoringConfig) -> None:
    with pytest.raises(JobError, match="is not a complete Parquet file"):
        run_made_up(config, CutsFiles(config))
    assert ids_of(config.output) == []


class CommitsAtOnce(MadeUpEngine):
    """Commits all chunks at the same moment, each from a thread of its own."""

    def score(self, plan: Any, tasks: Any, ledger: Any, progress: Any) -> None:
        class Held:
            def __init__(self) -> None:
                self.scored: list[Any] = []

            def commit(self, scored: Any) -> None:
                self.scored.append(scored)

        held = Held()
        super().score(plan, tasks, held, progress)  # type: ignore[arg-type]
        start = threading.Barrier(len(held.scored))

        def commit(scored: Any) -> None:
            start.wait()
            ledger.commit(scored)

        with ThreadPoolExecutor(len(held.scored)) as pool:
            list(pool.map(commit, held.scored))


def test_chunks_that_are_committed_at_once_are_all_counted(config: ScoringConfig) -> None:
    config = config.replace(chunks={"target_rows": 10})
    result = run_made_up(config, CommitsAtOnce(config, failing=(1, 2, 3)))
    assert (result.rows, result.error_rows) == (80, 15)
    assert result.metrics["labelled_rows"] == 65
    assert ids_of(config.output) == list(range(80))


def test_errors_of_chunks_that_are_committed_at_once_reach_the_limit(
    config: ScoringConfig,
) -> None:
    config = config.replace(chunks={"target_rows": 10}, max_error_rows=11)
    with pytest.raises(JobError, match="12 rows have an error.*allows 11"):
        run_made_up(config, CommitsAtOnce(config))
