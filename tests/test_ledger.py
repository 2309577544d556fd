"""Two writers of one output, of which one wakes up after it was taken for dead."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import sparkinfer.jobs.runner
from sparkinfer import exclusive, storage
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError
from sparkinfer.jobs import output
from sparkinfer.jobs.lease import Lease, LeaseLostError
from sparkinfer.jobs.records import Records
from sparkinfer.sinks.parquet import ParquetFolder
from tests.disk import Disk, ids_of
from tests.made_up_engine import MadeUpEngine, run_made_up, write_input


@pytest.fixture(params=["disk", "store"])
def config(
    request: pytest.FixtureRequest,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ScoringConfig]:
    """A run of 40 rows in two chunks, on a disk or on a store that creates exclusively."""
    output = str(tmp_path / "out")
    if request.param == "store":
        monkeypatch.setattr(exclusive, "STORES_THAT_CREATE_EXCLUSIVELY", frozenset({"memory"}))
        monkeypatch.setattr(sparkinfer.jobs.runner, "Lease", partial(Lease, settle_s=0.0))
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        output = "memory://bucket/out"
    yield ScoringConfig(
        model=str(classifier),
        input=str(write_input(tmp_path / "in", files=1)),
        input_col="text",
        output=output,
        engine="local",
        chunks={"target_rows": 20},
    )
    MemoryFileSystem.store.clear()


def take_over(output: str) -> None:
    """Puts an epoch of a writer that came and went after the present one."""
    lease = f"{output}/_sparkinfer/lease"
    latest = storage.names_in(lease)[-1]
    claim = json.loads(storage.read_text(f"{lease}/{latest}") or "")
    epoch = int(latest[6:14]) + 1
    text = json.dumps({**claim, "token": "other", "released": True})
    storage.write_text(f"{lease}/epoch-{epoch:08d}.json", text)


class Sleeper(Disk):
    """Lets another run do everything before one change of a run that goes on afterwards."""

    def __init__(
        self, config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, other: Callable[[], Any]
    ) -> None:
        super().__init__(config.output, monkeypatch)
        self.other = other
        self.asleep_at: int | None = None

    def _counted(self, change: Any) -> Any:
        counted = super()._counted(change)

        def sleeping(*arguments: Any, **options: Any) -> Any:
            given = [a for a in (*arguments, *options.values()) if isinstance(a, str)]
            is_counted = not any("/lease" in a for a in given)
            if is_counted and self.changes == self.asleep_at:
                self.asleep_at = None
                take_over(str(self.output))
                self.other()
            return counted(*arguments, **options)

        return sleeping


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("parts", [(1, 1), (2, 1)])
def test_a_writer_that_wakes_up_before_any_change_loses_and_doubles_nothing(
    config: ScoringConfig,
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[int, int],
    overwrite: bool,
) -> None:
    asleep = config

    def other() -> None:
        again = asleep.replace(overwrite=overwrite)
        assert run_made_up(again, MadeUpEngine(again, parts=parts[1])).rows == 40

    sleeper = Sleeper(config, monkeypatch, other)
    sleeper.watch_changes()
    run_made_up(config, MadeUpEngine(config, parts=parts[0]))
    for number in range(sleeper.changes):
        asleep = config.replace(output=f"{config.output}-{number}")
        sleeper.output, sleeper.changes, sleeper.asleep_at = asleep.output, 0, number
        with contextlib.suppress(JobError):
            run_made_up(asleep, MadeUpEngine(asleep, parts=parts[0]))
        assert sleeper.asleep_at is None
        result = run_made_up(asleep)
        assert ids_of(asleep.output) == list(range(40)), number
        assert (result.rows, storage.exists(f"{asleep.output}/_SUCCESS")) == (40, True)


@pytest.mark.parametrize("then", [{}, {"retry_errors": True}, {"overwrite": True}])
def test_a_retry_that_wakes_up_before_any_change_takes_no_row_away(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, then: dict[str, Any]
) -> None:
    retry, other = config.replace(retry_errors=True), config.replace(**then)

    def prepare(number: int) -> ScoringConfig:
        output = f"{config.output}-{number}"
        fresh = config.replace(output=output)
        run_made_up(fresh, MadeUpEngine(fresh, parts=2, failing=(5, 6, 25)))
        sleeper.output, sleeper.changes = output, 0
        return retry.replace(output=output)

    sleeper = Sleeper(config, monkeypatch, lambda: None)
    sleeper.watch_changes()
    first = prepare(0)
    run_made_up(first, MadeUpEngine(first, parts=2))
    for number in range(1, sleeper.changes):
        asleep = prepare(number)
        sleeper.asleep_at = number
        again = other.replace(output=asleep.output)
        sleeper.other = partial(run_made_up, again, MadeUpEngine(again, parts=2))
        with contextlib.suppress(JobError):
            run_made_up(asleep, MadeUpEngine(asleep, parts=2))
        assert sleeper.asleep_at is None
        assert ids_of(asleep.output) == list(range(40)), number
        assert storage.exists(f"{asleep.output}/_SUCCESS")
        engine = MadeUpEngine(asleep)
        assert run_made_up(config.replace(output=asleep.output), engine).rows == 40
        assert engine.scored == []


def test_a_writer_that_wakes_up_at_the_end_keeps_what_its_successor_needs(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = f"{config.output}/_sparkinfer"
    successors = [f"{work}/chunks/00000000.000-ffffffff.json", f"{work}/input/later/a.parquet"]
    remove_manifests = output.remove_manifests

    def sleep(path: str, below: int) -> None:
        for file in successors:
            storage.make_folder(file.rpartition("/")[0])
            storage.write_text(file, "")
        take_over(str(config.output))
        remove_manifests(path, below)

    monkeypatch.setattr(output, "remove_manifests", sleep)
    with pytest.raises(LeaseLostError):
        run_made_up(config)
    assert all(storage.exists(file) for file in successors)


def test_a_record_of_another_writer_is_finished_and_ones_own_attempt_dropped(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Records.create
    first: list[Any] = []

    def outrun(self: Records, record: Any) -> Any:
        if first:
            return create(self, record)
        first.append(record)
        work = f"{config.output}/_sparkinfer"
        [(name, source)] = record.sources.items()
        copied = f"staging/{record.epoch:08d}/other.parquet"
        _, path = storage.file_system(f"{work}/{source}")
        storage.file_system(work)[0].copy(path, storage.file_system(f"{work}/{copied}")[1])
        first.append(name)
        other = type(record)(**{**vars(record), "sources": {name: copied}, "device": "other"})
        assert create(self, other) == other
        return create(self, record)

    monkeypatch.setattr(Records, "create", outrun)
    assert run_made_up(config).rows == 40
    assert ids_of(config.output) == list(range(40))
    run = next(iter(first[1].split("-")[3:])).removesuffix(".parquet")
    records = Records(str(config.output), run)
    kept = records.read(0, 0)
    assert kept is not None
    assert kept.device == "other"
    assert records.generations() == {0: [0], 1: [0]}


def test_a_record_whose_files_are_gone_is_followed_by_the_next_generation(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Records.create
    made: list[Any] = []

    def outrun(self: Records, record: Any) -> Any:
        if not made:
            gone = dict.fromkeys(record.sources, "staging/00000000/gone.parquet")
            other = type(record)(**{**vars(record), "sources": gone})
            made.append(create(self, other))
        return create(self, record)

    monkeypatch.setattr(Records, "create", outrun)
    assert run_made_up(config).rows == 40
    assert ids_of(config.output) == list(range(40))
    [name] = [name for name in made[0].files if name.startswith("part-00000000")]
    run = name.split("-")[3].removesuffix(".parquet")
    assert Records(str(config.output), run).generations() == {0: [1, 0], 1: [0]}


def test_files_of_a_chunk_whose_record_is_lost_stay_until_they_are_replaced(
    config: ScoringConfig,
) -> None:
    run_made_up(config)
    folder = f"{config.output}/_sparkinfer/chunks"
    lost = storage.names_in(folder)[0]
    storage.remove(f"{folder}/{lost}")
    seen: list[list[int]] = []
    engine = MadeUpEngine(
        config, parts=2, before_chunk=lambda task: seen.append(ids_of(config.output))
    )
    run_made_up(config, engine)
    assert (engine.scored, seen) == ([0], [list(range(40))])
    assert ids_of(config.output) == list(range(40))


def test_a_stranger_that_turns_up_meanwhile_is_left_alone_and_the_mark_is_not_made(
    config: ScoringConfig,
) -> None:
    stranger = f"{config.output}/part-00000-1234.c000.snappy.parquet"

    def drop(task: Any) -> None:
        storage.write_text(stranger, "somebody's")

    with pytest.raises(JobError, match="holds 'part-00000-1234.c000.snappy.parquet', which no run"):
        run_made_up(config, MadeUpEngine(config, before_chunk=drop))
    assert storage.read_text(stranger) == "somebody's"
    assert not ParquetFolder(str(config.output)).is_finished()
    storage.remove(stranger)
    assert run_made_up(config).rows_before == 40
    assert ParquetFolder(str(config.output)).is_finished()


def test_without_the_lease_nothing_is_cleaned_up(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(task: Any) -> None:
        storage.make_folder(task.staging)
        storage.write_text(f"{task.staging}/x", "")
        take_over(str(config.output))

    with pytest.raises(LeaseLostError):
        run_made_up(config, MadeUpEngine(config, before_chunk=lose))
    assert storage.names_in(f"{config.output}/_sparkinfer/staging") == ["00000001"]
    assert run_made_up(config).rows == 40
    assert storage.names_in(f"{config.output}/_sparkinfer/staging") == []


def test_what_is_recorded_and_cannot_be_moved_stays_staged_for_the_next_run(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "for now")

    with monkeypatch.context() as patched:
        patched.setattr(ParquetFolder, "publish", refuse)
        with pytest.raises(JobError, match="for now"):
            run_made_up(config)
    engine = MadeUpEngine(config)
    assert run_made_up(config, engine).rows_before == 20
    assert engine.scored == [1]
    assert ids_of(config.output) == list(range(40))
