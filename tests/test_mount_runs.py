"""Whole runs on mounts that do less than a disk, and on some that are slow or away."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sparkinfer.jobs.runner
import sparkinfer.sinks.parquet
from sparkinfer import mounts
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import OutputError
from sparkinfer.jobs import insistence
from sparkinfer.jobs.lease import Lease
from sparkinfer.rows import reading
from sparkinfer.storage import is_on_disk, walk
from tests.disk import Disk, Killed, ids_of
from tests.fuse_mount import FuseMount
from tests.made_up_engine import MadeUpEngine, run_made_up, write_input
from tests.written import without_run

BARE = {"refused": {"rename": "EPERM", "link": "EPERM"}, "sequential": True}
"""As mounted volumes of object stores are reported to be."""


@pytest.fixture
def config(
    mount: FuseMount, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ScoringConfig:
    """A run of 40 rows in two chunks, from a disk to a mount."""
    monkeypatch.setattr(mounts, "_has_renames", {})
    lease = partial(Lease, settle_s=0.0, beat_s=0.1, lost_after_s=1.0)
    monkeypatch.setattr(sparkinfer.jobs.runner, "Lease", lease)
    return ScoringConfig(
        model=str(classifier),
        input=str(write_input(tmp_path / "in", files=1)),
        input_col="text",
        output=str(mount.hosts[0] / "out"),
        engine="local",
        chunks={"target_rows": 20},
    )


def files_in(config: ScoringConfig) -> set[str]:
    """Returns the files of an output, without what a mount that failed kept of a trial."""
    names = {without_run(name) for name in walk(str(config.output))}
    return {name for name in names if ".sparkinfer-probe-" not in name}


WHOLE = {
    "_SUCCESS",
    "_sparkinfer/chunks/00000000.000-RUN.json",
    "_sparkinfer/chunks/00000001.000-RUN.json",
    "_sparkinfer/lease/epoch-00000001.json",
    "_sparkinfer/manifest-000001.json",
    "_sparkinfer/runs/000000-RUN.json",
    "part-00000000-000-RUN.parquet",
    "part-00000001-000-RUN.parquet",
}


@pytest.mark.parametrize(
    "switches",
    [
        BARE,
        {"refused": {"rename": "ENOSYS", "link": "EOPNOTSUPP"}},
        {"refused": {"rename": "EPERM"}},
        {"refused": {"link": "EPERM"}},
        {"sequential": True},
    ],
)
def test_a_run_needs_neither_renames_nor_links(
    mount: FuseMount, config: ScoringConfig, switches: dict[str, Any]
) -> None:
    mount.switch(**switches)
    assert run_made_up(config).rows == 40
    assert ids_of(config.output) == list(range(40))
    assert files_in(config) == WHOLE
    engine = MadeUpEngine(config)
    assert run_made_up(config, engine).rows_before == 40
    assert engine.scored == []
    again = config.replace(overwrite=True)
    assert run_made_up(again, MadeUpEngine(again, parts=2)).rows == 40
    assert len(files_in(config)) == len(WHOLE) + 3  # two files more, and an epoch


def test_a_kill_before_any_change_of_a_bare_mount_loses_and_doubles_nothing(
    mount: FuseMount, config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.switch(**BARE)
    disk = Disk(config.output, monkeypatch).watch_changes()
    run_made_up(config, MadeUpEngine(config, parts=2))
    for fatal in range(0, disk.changes, 2):
        fresh = config.replace(output=f"{config.output}-{fatal}")
        disk.kill_at(fatal, fresh.output)
        with pytest.raises(Killed):
            run_made_up(fresh, MadeUpEngine(fresh, parts=2))
        disk.fatal = None
        assert run_made_up(fresh).rows == 40
        assert ids_of(fresh.output) == list(range(40)), fatal


def test_a_half_copied_file_is_replaced_by_the_next_run(
    mount: FuseMount, config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.switch(**BARE)

    def copy_half(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(sparkinfer.sinks.parquet, "move", copy_half)
        with pytest.raises(Killed):
            run_made_up(config)
    engine = MadeUpEngine(config)
    assert run_made_up(config, engine).rows_before == 20
    assert (engine.scored, ids_of(config.output)) == ([1], list(range(40)))


def test_a_mount_that_fails_for_a_while_ends_nothing(
    mount: FuseMount, config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than it takes to be thought dead: the time is scaled down for the test."""
    monkeypatch.setattr(insistence, "FIRST_PAUSE_S", 0.1)

    def fail(task: Any) -> None:
        if task.chunk.number == 1:
            mount.switch(refused={"*": "EIO"}, refused_for_s=3.0)

    class FailsAtTheCommit(MadeUpEngine):
        def _write(self, plan: Any, task: Any, table: Any) -> Any:
            files = super()._write(plan, task, table)
            fail(task)
            return files

    assert run_made_up(config, FailsAtTheCommit(config)).rows == 40
    assert ids_of(config.output) == list(range(40))
    assert files_in(config) == WHOLE


def test_rows_are_read_on_after_a_mount_has_failed_for_a_while(
    mount: FuseMount, config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reading, "PAUSES_S", (0.2,) * 20)
    source = write_input(mount.hosts[0] / "in", files=1)
    config = config.replace(input=str(source), output=str(tmp_path / "out"))

    def fail(task: Any) -> None:
        mount.switch(refused={"open_file": "EIO", "read": "EIO"}, refused_for_s=1.0)

    assert run_made_up(config, MadeUpEngine(config, before_chunk=fail)).rows == 40
    assert ids_of(config.output) == list(range(40))


def test_a_slow_mount_has_the_time_limits_of_a_store(
    mount: FuseMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_on_disk(str(tmp_path / "not/there/yet"))
    assert not is_on_disk(str(mount.hosts[0] / "not" / "there" / "yet"))
    on_disk, on_mount = Lease(str(tmp_path / "a")), Lease(str(mount.hosts[0] / "a"))
    assert on_mount._lost_after_s > on_disk._lost_after_s


def test_two_hosts_of_a_bare_mount_do_not_both_write(
    mount: FuseMount, config: ScoringConfig
) -> None:
    mount.switch(**BARE)
    other = config.replace(output=str(mount.hosts[1] / "out"))
    refused: list[str] = []

    def second(task: Any) -> None:
        if task.chunk.number == 1:
            with pytest.raises(OutputError) as raised:
                run_made_up(other)
            refused.append(raised.value.message)

    assert run_made_up(config, MadeUpEngine(config, before_chunk=second)).rows == 40
    # While a beat is written in place, the file may look damaged.
    assert "is being written by" in refused[0]
    assert run_made_up(other).rows_before == 40
