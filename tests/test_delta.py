"""Runs that append to a Delta table: each row is there once, whatever happened on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, JobError, OutputError, ResumeError
from sparkinfer.jobs.result import RunResult
from sparkinfer.sinks.tables import delta
from tests.disk import Disk, Killed, ids_of
from tests.made_up_engine import MadeUpEngine, job_of_eighty_rows, run_made_up


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path).replace(
        delta={"table": str(tmp_path / "table")}
    )


def run(config: ScoringConfig, **options: Any) -> tuple[RunResult, MadeUpEngine]:
    engine = MadeUpEngine(config, **options)
    return run_made_up(config, engine), engine


def rows_of(config: ScoringConfig) -> list[dict[str, Any]]:
    path = str(config.delta.table)
    if not DeltaTable.is_deltatable(path):
        return []
    return sorted(DeltaTable(path).to_pyarrow_table().to_pylist(), key=lambda row: row["id"])


def delta_ids(config: ScoringConfig) -> list[int]:
    return [row["id"] for row in rows_of(config)]


def numbered(config: ScoringConfig, number: int) -> ScoringConfig:
    return config.replace(
        output=f"{config.output}-{number}", delta={"table": f"{config.delta.table}-{number}"}
    )


def test_the_table_holds_what_the_files_hold(config: ScoringConfig) -> None:
    result, _ = run(config, parts=3)
    assert result.rows == 80
    rows = rows_of(config)
    files = pq.read_table(str(config.output)).sort_by("id").to_pylist()
    assert [{k: v for k, v in row.items() if k != delta.CHUNK.name} for row in rows] == files
    assert run(config)[1].scored == []
    assert len(rows_of(config)) == 80


def test_a_kill_before_any_change_loses_and_doubles_nothing(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(config.output, monkeypatch).watch_changes()
    disk.watch(delta, "write_deltalake")
    run(config)
    changes = disk.changes
    assert changes > 16
    for fatal in range(changes):
        fresh = numbered(config, fatal)
        disk.kill_at(fatal, fresh.output)
        with pytest.raises(Killed):
            run(fresh)
        disk.fatal = None
        run(fresh, parts=2)
        assert delta_ids(fresh) == list(range(80)), fatal


def test_a_kill_right_after_a_commit_does_not_double_it(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fatal in range(4):
        fresh, calls = numbered(config, fatal), []

        def committed(*given: Any, last: int = fatal, calls: list[Any] = calls, **o: Any) -> None:
            write_deltalake(*given, **o)
            calls.append(given)
            if len(calls) == last + 1:
                raise Killed

        monkeypatch.setattr(delta, "write_deltalake", committed)
        with pytest.raises(Killed):
            run(fresh)
        monkeypatch.undo()
        run(fresh)
        assert delta_ids(fresh) == list(range(80))


def test_recovered_rows_take_the_place_of_the_chunks_own(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(config.output, monkeypatch).watch_changes()
    disk.watch(delta, "write_deltalake")
    for fatal in range(0, 30, 3):
        fresh = numbered(config, fatal)
        disk.kill_at(None, fresh.output)
        run(fresh, failing=[3, 45])
        assert [row["id"] for row in rows_of(fresh) if row["error"] == "model: made up"] == [3, 45]
        disk.kill_at(fatal, fresh.output)
        try:
            run(fresh.replace(retry_errors=True))
        except Killed:
            disk.fatal = None
            run(fresh.replace(retry_errors=True))
        rows = rows_of(fresh)
        assert [row["id"] for row in rows] == list(range(80))
        assert not [row for row in rows if row["error"] == "model: made up"]


def test_overwriting_removes_the_earlier_runs_rows_and_no_others(config: ScoringConfig) -> None:
    other = config.replace(output=f"{config.output}-other")
    run(other)
    run(config)
    assert delta_ids(config) == sorted([*range(80), *range(80)])
    (Path(str(config.input)) / "in-1.parquet").unlink()
    run(config.replace(overwrite=True))
    assert delta_ids(config) == sorted([*range(80), *range(40)])


def test_chunks_that_others_commit_between_are_kept(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = delta.write_deltalake

    def with_another(table: Any, rows: Any, **options: Any) -> None:
        if not isinstance(table, str):
            more = DeltaTable(str(config.delta.table))
            stranger = more.to_pyarrow_table().slice(0, 1).set_column(0, "id", pa.array([1000]))
            write(more, stranger, mode="append")
        write(table, rows, **options)

    monkeypatch.setattr(delta, "write_deltalake", with_another)
    run(config)
    assert delta_ids(config) == [*range(80), 1000, 1000, 1000]


def test_two_writers_of_one_chunk_append_it_once(config: ScoringConfig) -> None:
    run(config)
    table = str(config.delta.table)
    [file] = sorted(Path(str(config.output)).glob("part-00000000-*.parquet"))
    columns = pq.read_schema(file).remove_metadata()
    other = f"{table}-2"
    mine, yours = (delta.DeltaAppends(other, "r", columns) for _ in range(2))
    publication = delta.Publication({}, {}, {}, 20)
    assert not mine.has_arrived(0, publication)
    yours.deliver(0, [str(file)], publication)
    mine.deliver(0, [str(file)], publication)
    assert DeltaTable(other).count() == 20


def test_a_writer_of_a_replaced_run_appends_nothing_more(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    [file] = sorted(Path(str(config.output)).glob("part-00000000-*.parquet"))
    columns = pq.read_schema(file).remove_metadata()
    old = delta.DeltaAppends(str(config.delta.table), "old", columns)
    old.deliver(0, [str(file)], delta.Publication({}, {}, {}, 20))
    write = delta.write_deltalake

    def replaced_meanwhile(*given: Any, **options: Any) -> None:
        monkeypatch.setattr(delta, "write_deltalake", write)
        new = delta.DeltaAppends(str(config.delta.table), "new", columns)
        new.remove_runs(["old"])
        write(*given, **options)

    monkeypatch.setattr(delta, "write_deltalake", replaced_meanwhile)
    with pytest.raises(JobError, match="another run on this output has taken the place"):
        old.deliver(1, [str(file)], delta.Publication({}, {}, {}, 20))
    assert delta_ids(config) == list(range(80))
    empty = delta.DeltaAppends(str(config.delta.table), "new", columns)
    empty.remove_runs(["never"])
    never = delta.DeltaAppends(str(config.delta.table), "never", columns)
    with pytest.raises(JobError, match="another run on this output has taken the place"):
        never.deliver(0, [str(file)], delta.Publication({}, {}, {}, 20))


def test_a_table_that_was_removed_is_filled_again(config: ScoringConfig) -> None:
    import shutil

    run(config)
    shutil.rmtree(str(config.delta.table))
    _, engine = run(config)
    assert engine.scored == []
    assert delta_ids(config) == list(range(80))


def test_what_cannot_work_is_refused_before_anything_is_written(config: ScoringConfig) -> None:
    write_deltalake(str(config.delta.table), pa.table({"id": ["a"]}))
    with pytest.raises(OutputError, match="has other columns than the output: id is .*string"):
        run(config)
    inside = config.replace(delta={"table": f"{config.output}/table"})
    with pytest.raises(ConfigError, match="are folders within one another"):
        run(inside)
    for name in ("a%20b", "a[b]"):  # the first would be read from "a b", the second ends deltalake
        with pytest.raises(ConfigError, match="the package deltalake misreads"):
            run(config.replace(delta={"table": f"{config.delta.table}-{name}"}))
    file = Path(f"{config.delta.table}-file")
    file.touch()
    with pytest.raises(OutputError, match="is no folder that can be written"):
        run(config.replace(delta={"table": str(file / "table")}))
    assert not Path(str(config.output)).exists()


def test_another_table_does_not_go_on_with_a_run(config: ScoringConfig) -> None:
    run(config)
    with pytest.raises(ResumeError, match="delta.table was .*, is None"):
        run(config.replace(delta={}))
    assert ids_of(config.output) == list(range(80))
