"""What a run does with chunks, whatever scores them; the engine here makes its scores up."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from sparkinfer.config import ScoringConfig
from sparkinfer.engines.file_input import FileInput
from sparkinfer.exceptions import ConfigError, InputError, JobError, OutputError, ResumeError
from sparkinfer.jobs.error_limit import ErrorLimit
from sparkinfer.jobs.lease import LeaseLostError
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.summary import summarize
from sparkinfer.plan import input_chunks
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.ports import ChunkTask
from sparkinfer.report.status import describe_status, read_status
from sparkinfer.rows import copying
from sparkinfer.rows.copying import Copy, FileCopier
from tests.disk import Disk, Killed, ids_of
from tests.made_up_engine import (
    MadeUpEngine,
    add_file,
    job_of_eighty_rows,
    run_made_up,
    write_input,
)
from tests.tiny_models import make_classifier
from tests.written import edit_manifest, manifest_values, part_of, record_file


@pytest.fixture
def source(config: ScoringConfig) -> Path:
    return Path(str(config.input))


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


def rows_of(output: str | None) -> list[dict[str, Any]]:
    return pads.dataset(str(output), format="parquet").to_table().sort_by("id").to_pylist()


def run(config: ScoringConfig, **options: Any) -> tuple[RunResult, MadeUpEngine]:
    engine = MadeUpEngine(config, **options)
    return run_made_up(config, engine), engine


def kill_before(number: int) -> Callable[[Any], None]:
    def before(task: Any) -> None:
        if task.chunk.number == number:
            raise Killed

    return before


@pytest.fixture
def one_row_group(tmp_path: Path, config: ScoringConfig) -> ScoringConfig:
    """Scores two files of one row group of 200,000 rows each, in a folder that is a column."""
    folder = write_input(tmp_path / "large" / "day=7", files=2, row_groups=1, rows=200_000)
    return config.replace(input=str(folder.parent), chunks={}, label_col=None)


def work_files(config: ScoringConfig) -> list[str]:
    """Returns the names of the files that are read from a copy."""
    folder = Path(str(config.output)) / "_sparkinfer" / "input"
    return sorted(path.name for path in folder.rglob("*.parquet"))


def test_a_run_over_one_row_group_that_is_broken_off_keeps_what_is_done(
    one_row_group: ScoringConfig,
) -> None:
    with pytest.raises(Killed):
        run(one_row_group, before_chunk=kill_before(20))
    kept = ids_of(one_row_group.output)
    assert 0.5 * 400_000 < len(kept) < 400_000
    assert kept == list(range(len(kept)))
    result, engine = run(one_row_group)
    assert engine.scored == list(range(20, 26))
    assert (result.rows, result.rows_before) == (400_000, len(kept))
    assert ids_of(one_row_group.output) == list(range(400_000))
    assert work_files(one_row_group) == []


def test_target_rows_bounds_every_chunk(config: ScoringConfig) -> None:
    run(config.replace(chunks={"target_rows": 7}))
    folder = Path(str(config.output)) / "_sparkinfer" / "chunks"
    rows = [json.loads(path.read_text())["rows"] for path in sorted(folder.iterdir())]
    assert max(rows) <= 7
    assert ids_of(config.output) == list(range(80))


def test_a_file_of_large_row_groups_is_read_from_a_copy_and_others_in_place(
    one_row_group: ScoringConfig, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(str(one_row_group.input))
    small = write_input(folder / "day=8", files=3).joinpath("in-2.parquet")
    for number in range(2):
        (folder / "day=8" / f"in-{number}.parquet").unlink()
    (folder / "day=7" / "in-1.parquet").unlink()
    small_ids = pq.read_table(small, columns=["id"])["id"].to_pylist()
    monkeypatch.setattr(input_chunks, "should_copy", lambda file, *_: max(file.rows) > 1000)
    with pytest.raises(Killed):
        run(one_row_group, before_chunk=kill_before(8))
    names = work_files(one_row_group)
    assert {name.split("-")[0] for name in names} == {"in"}
    assert len(names) == 1
    monkeypatch.undo()
    read: list[str] = []

    def note(task: ChunkTask) -> None:
        read.extend(piece.path for piece in task.chunk.pieces)

    result, engine = run(one_row_group, before_chunk=note)
    assert engine.scored[0] == 8
    assert result.rows == 200_040
    found = ids_of(one_row_group.output)
    assert sorted(found) == sorted([*range(200_000), *small_ids])
    assert {path.split("/")[0] for path in read} == {"_copies", "day=8"}
    assert all("/day=7/" in path for path in read if path.startswith("_copies"))
    assert work_files(one_row_group) == names


def test_a_copy_with_too_few_rows_is_refused(
    one_row_group: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_chunks, "should_copy", lambda file, *_: max(file.rows) > 1000)
    monkeypatch.setattr(copying, "GROUPS_PER_FILE", 2)
    whole = FileCopier.__call__

    def without_the_first(self: FileCopier, name: str) -> Copy:
        return replace(made := whole(self, name), names=made.names[1:])

    monkeypatch.setattr(FileCopier, "__call__", without_the_first)
    with pytest.raises(JobError, match="in-0.parquet' has 200000 rows and its copy 191808"):
        run(one_row_group)


def test_a_manifest_of_whole_row_groups_is_gone_on_with(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(1))
    assert manifest_values(config.output)["chunks"] == [
        [[0, 0, 2, 20]],
        [[0, 2, 2, 20]],
        [[1, 0, 2, 20]],
        [[1, 2, 2, 20]],
    ]
    edit_manifest(config.output, chunks=[[[0, 0, 2, 20]], [[0, 2, 2, 20], [1, 0, 4, 40]]])
    result, engine = run(config.replace(chunks={"target_rows": 3}))
    assert (engine.scored, result.rows) == ([1], 80)
    assert ids_of(config.output) == list(range(80))


def test_every_chunk_is_scored_published_and_recorded_once(config: ScoringConfig) -> None:
    result, engine = run(config)
    assert engine.scored == [0, 1, 2, 3]
    assert ids_of(config.output) == list(range(80))
    assert (result.rows, result.error_rows, result.rows_before) == (80, 12, 0)
    records = sorted((Path(str(config.output)) / "_sparkinfer" / "chunks").iterdir())
    values = [json.loads(path.read_text()) for path in records]
    assert [value["rows"] for value in values] == [20, 20, 20, 20]
    assert values[0]["reasons"] == {"text is null": 3}
    assert values[0]["tokens"] == 51
    assert (Path(str(config.output)) / "_SUCCESS").exists()


def test_metrics_are_those_of_all_rows_also_after_a_resume(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(2))
    result, _ = run(config)
    rows = [row for row in rows_of(config.output) if row["error"] is None]
    truth = [row["label"] for row in rows]
    predicted = [int(row["prediction"] == "POSITIVE") for row in rows]
    assert result.metrics["labelled_rows"] == len(rows) == 68
    assert result.metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-6)
    assert result.metrics["f1_macro"] == pytest.approx(
        f1_score(truth, predicted, average="macro"), abs=1e-6
    )
    probabilities = np.array([row["probabilities"] for row in rows], np.float32)
    assert result.metrics["log_loss"] == pytest.approx(log_loss(truth, probabilities), abs=1e-6)


def relabel(source: Path, label: Callable[[int], Any]) -> None:
    """Replaces the true labels of an input by those for its row numbers."""
    for path in source.glob("*.parquet"):
        table = pq.read_table(path)
        labels = pa.array([label(row) for row in table["id"].to_pylist()])
        place = table.schema.get_field_index("label")
        pq.write_table(table.set_column(place, "label", labels), path)


def test_labels_that_match_nothing_are_told_of_before_scoring_and_in_the_result(
    config: ScoringConfig, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relabel(source, lambda row: 7)

    def was_told(task: Any) -> None:
        assert "'7', is one of the model's, 'NEGATIVE', 'POSITIVE'" in caplog.text

    result, _ = run(config, before_chunk=was_told)
    assert result.metrics == {}
    assert result.metrics_problem is not None
    reason = f"metrics    none: {result.metrics_problem}"
    assert "label_col='label': none of 80 labels, such as '7', is one of" in reason
    assert reason in summarize(result)
    assert reason in describe_status(read_status(str(config.output)))
    assert run(config)[0].metrics_problem == result.metrics_problem


def test_one_label_that_is_no_id_keeps_the_numbers_of_all_chunks_from_being_ids(
    config: ScoringConfig, source: Path
) -> None:
    relabel(source, lambda row: 2 if row == 79 else row % 2)
    result, engine = run(config)
    assert len(engine.scored) == 4
    assert result.metrics == {}
    assert "none of 80 labels, such as '0', '1', '2', is one" in str(result.metrics_problem)


def test_a_run_goes_on_after_its_last_record(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(2))
    assert ids_of(config.output) == list(range(40))
    assert not (Path(str(config.output)) / "_SUCCESS").exists()
    result, engine = run(config, parts=3)
    assert engine.scored == [2, 3]
    assert (result.rows, result.rows_before) == (80, 40)
    assert ids_of(config.output) == list(range(80))


def test_a_finished_run_has_nothing_to_do(config: ScoringConfig) -> None:
    run(config)
    result, engine = run(config)
    assert engine.scored == []
    assert (result.rows, result.rows_before, result.workers) == (80, 80, None)


def test_a_lost_mark_of_the_end_is_put_back(config: ScoringConfig) -> None:
    run(config)
    mark = Path(str(config.output)) / "_SUCCESS"
    mark.unlink()
    _, engine = run(config)
    assert (engine.scored, mark.exists()) == ([], True)


@pytest.mark.parametrize("parts", [(1, 1), (3, 2), (2, 3)])
def test_a_kill_before_any_change_of_the_disk_loses_and_doubles_nothing(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch, parts: tuple[int, int]
) -> None:
    disk = Disk(config.output, monkeypatch).watch_changes()
    run(config, parts=parts[0])
    changes = disk.changes
    assert changes > 12
    for fatal in range(changes):
        fresh = config.replace(output=f"{config.output}-{fatal}")
        disk.kill_at(fatal, fresh.output)
        with pytest.raises(Killed):
            run(fresh, parts=parts[0])
        disk.fatal = None
        result, _ = run(fresh, parts=parts[1])
        assert ids_of(fresh.output) == list(range(80)), fatal
        assert (result.rows, result.error_rows) == (80, 12)
        assert result.metrics["labelled_rows"] == 68
        assert (Path(str(fresh.output)) / "_SUCCESS").exists()


def test_a_kill_during_an_overwriting_run_never_shows_two_runs_at_once(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    disk = Disk(config.output, monkeypatch).watch_changes()
    again = config.replace(overwrite=True)
    run(again, parts=2)
    for fatal in range(0, disk.changes, 3):
        disk.kill_at(fatal, config.output)
        with pytest.raises(Killed):
            run(again, parts=2)
        disk.fatal = None
        assert run(again)[0].rows == 80
        assert ids_of(config.output) == list(range(80))


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"max_length": 32}, "max_length was None, is 32"),
        ({"output_prefix": "m_"}, "output_prefix was '', is 'm_'"),
        ({"label_col": None}, "label_col was 'label', is None"),
        ({"carry_cols": ("id", "label")}, "carry_cols was None, is \\['id', 'label'\\]"),
    ],
)
def test_a_run_with_other_settings_is_refused(
    config: ScoringConfig, options: dict[str, Any], difference: str
) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(1))
    with pytest.raises(ResumeError, match=f"{difference}.*--overwrite"):
        run(config.replace(**options))
    assert run(config)[1].scored == [1, 2, 3]


def test_another_precision_than_that_of_the_first_run_is_refused(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(1))
    with pytest.raises(ResumeError, match="acceleration was .*float32.*, is .*bfloat16"):
        run(config, dtype="bfloat16")


def test_csv_that_is_read_in_another_way_is_refused(config: ScoringConfig, tmp_path: Path) -> None:
    (tmp_path / "csv" / "id=1").mkdir(parents=True)
    (tmp_path / "csv" / "id=1" / "a.csv").write_text("text\nNA\ngood\n")
    config = config.replace(input=str(tmp_path / "csv"), label_col=None)
    run(config)
    with pytest.raises(ResumeError, match=r"csv\.null was None, is 'NA'"):
        run(config.replace(csv={"null": "NA"}))
    again, _ = run(config)
    assert again.rows == 2


def test_settings_that_change_only_the_speed_may_change(config: ScoringConfig) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(1))
    other = config.replace(batching={"window_rows": 7}, chunks={"target_rows": 1000})
    assert run(other)[1].scored == [1, 2, 3]


def test_another_model_is_refused(config: ScoringConfig, tmp_path: Path) -> None:

    run(config)
    other = make_classifier(tmp_path / "other", seed=1)
    with pytest.raises(ResumeError, match="model_fingerprint was"):
        run(config.replace(model=str(other)))


def change_time(source: Path) -> None:
    os.utime(source / "in-1.parquet", ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda source: add_file(source, 2), "in-2.parquet is new"),
        (lambda source: (source / "in-0.parquet").unlink(), "in-0.parquet is gone"),
        (change_time, "in-1.parquet changed"),
    ],
)
def test_an_input_that_changed_is_refused(
    config: ScoringConfig, source: Path, change: Callable[[Path], None], difference: str
) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(1))
    change(source)
    with pytest.raises(ResumeError, match=difference):
        run(config)


def test_an_incremental_run_scores_the_new_files_alone(config: ScoringConfig, source: Path) -> None:
    incremental = config.replace(incremental=True)
    assert run(incremental)[1].scored == [0, 1, 2, 3]
    add_file(source, 2)
    result, engine = run(incremental)
    assert engine.scored == [4, 5]
    assert (result.rows, result.rows_before) == (120, 80)
    assert result.metrics["labelled_rows"] == 102
    assert ids_of(config.output) == list(range(120))
    assert run(incremental)[1].scored == []
    change_time(source)
    with pytest.raises(ResumeError, match="in-1.parquet changed"):
        run(incremental)


def test_an_incremental_run_that_is_killed_goes_on(config: ScoringConfig, source: Path) -> None:
    incremental = config.replace(incremental=True)
    run(incremental)
    add_file(source, 2)
    with pytest.raises(Killed):
        run(incremental, before_chunk=kill_before(5))
    assert not (Path(str(config.output)) / "_SUCCESS").exists()
    add_file(source, 3)
    assert run(incremental)[1].scored == [5, 6, 7]
    assert ids_of(config.output) == list(range(160))


def test_an_incremental_run_on_an_empty_input_begins_when_files_come(
    config: ScoringConfig, source: Path
) -> None:
    for path in source.iterdir():
        path.unlink()
    add_file(source, 0, row_groups=1, rows=0)
    incremental = config.replace(incremental=True)
    assert run(incremental)[0].rows == 0
    add_file(source, 1)
    assert run(incremental)[0].rows == 40
    assert ids_of(config.output) == list(range(40, 80))


@pytest.mark.parametrize("limit", [5, "7%"])
def test_too_many_errors_stop_the_run_and_a_higher_limit_goes_on(
    config: ScoringConfig, limit: int | str
) -> None:
    with pytest.raises(JobError, match="6 rows have an error.*allows 5: 6 x 'text is null'"):
        run(config.replace(max_error_rows=limit))
    assert ids_of(config.output) == list(range(40))
    result, engine = run(config.replace(max_error_rows="20%"))
    assert engine.scored == [2, 3]
    assert result.error_rows == 12


def test_a_run_with_too_many_errors_does_not_pass_when_it_is_given_again(
    config: ScoringConfig,
) -> None:
    limited = config.replace(max_error_rows=11)
    for _ in range(2):
        with pytest.raises(JobError, match="12 rows have an error.*allows 11"):
            run(limited)
        assert not (Path(str(config.output)) / "_SUCCESS").exists()
    assert run(config)[1].scored == []


def test_a_share_of_rows_is_exact(config: ScoringConfig) -> None:
    limit = ErrorLimit(config.replace(max_error_rows="29%"), 100)
    limit.add(29, {})
    with pytest.raises(JobError, match="allows 29"):
        limit.add(1, {})
    with pytest.raises(JobError, match="allows 0"):
        ErrorLimit(config.replace(max_error_rows="0.1%"), 999).add(1, {})


@pytest.mark.parametrize("limit", [-1, "1.5", "101%", "many", True, "%"])
def test_a_limit_of_errors_that_is_no_number_is_refused(
    config: ScoringConfig, limit: object
) -> None:
    with pytest.raises(ConfigError, match="max_error_rows="):
        config.replace(max_error_rows=limit)


def test_a_truncated_record_has_its_chunk_scored_again(config: ScoringConfig) -> None:
    run(config)
    record = record_file(config.output, 2)
    record.write_text(record.read_text()[:50])
    result, engine = run(config, parts=2)
    assert engine.scored == [2]
    assert (result.rows, result.rows_before) == (80, 60)
    assert ids_of(config.output) == list(range(80))


def test_a_published_file_that_is_gone_has_its_chunk_scored_again(config: ScoringConfig) -> None:
    run(config, parts=2)
    part_of(config.output, 1, 1).unlink()
    result, engine = run(config, parts=3)
    assert engine.scored == [1]
    assert result.rows == 80
    assert ids_of(config.output) == list(range(80))


def test_a_corrupted_row_group_is_named_and_what_is_done_is_kept(
    config: ScoringConfig, source: Path
) -> None:
    path = source / "in-1.parquet"
    content, stat = bytearray(path.read_bytes()), path.stat()
    whole = bytes(content)
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).dictionary_page_offset or 4
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(JobError, match=f"{path}.*row groups 0 to 1.*repair it"):
        run(config)
    assert ids_of(config.output) == list(range(40))
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(config)[1].scored == [2, 3]
    assert ids_of(config.output) == list(range(80))


def test_a_driver_that_was_thought_dead_wipes_nothing_of_its_successor(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = MadeUpEngine.on_one_worker
    taken: list[bool] = []

    def gate_in_which_another_takes_over(self: Any, *asked: Any) -> Any:
        if not taken:
            taken.append(True)
            lease = Path(str(config.output)) / "_sparkinfer" / "lease"
            (epoch,) = lease.iterdir()
            claim = json.loads(epoch.read_text())
            (lease / "epoch-00000002.json").write_text(json.dumps({**claim, "released": True}))
            assert run(config)[0].rows == 80
        return gate(self, *asked)

    monkeypatch.setattr(MadeUpEngine, "on_one_worker", gate_in_which_another_takes_over)
    with pytest.raises(LeaseLostError):
        run(config)
    assert taken
    assert ids_of(config.output) == list(range(80))
    assert (Path(str(config.output)) / "_SUCCESS").exists()
    assert run(config)[1].scored == []


def test_a_column_of_another_type_is_refused(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(1))
    opened = FileInput.open

    def other(self: Any) -> Any:
        table = opened(self)
        return replace(table, schema=table.schema.set(0, pa.field("id", pa.int32())))

    monkeypatch.setattr(FileInput, "open", other)
    with pytest.raises(ResumeError, match="columns was .*'int64'.*, is .*'int32'"):
        run(config)


def test_an_input_that_changes_while_it_is_scored_ends_without_the_mark(
    config: ScoringConfig, source: Path
) -> None:
    def change(task: Any) -> None:
        if task.chunk.number == 3:
            change_time(source)

    with pytest.raises(JobError, match="in-1.parquet changed"):
        run(config, before_chunk=change)
    assert not (Path(str(config.output)) / "_SUCCESS").exists()


def test_a_file_that_no_record_names_is_gone_in_the_end(config: ScoringConfig) -> None:

    def late(task: Any) -> None:
        if task.chunk.number == 3:
            whole = part_of(config.output, 1).read_bytes()
            part_of(config.output, 1, 1).write_bytes(whole)

    run(config, before_chunk=late)
    stray = part_of(config.output, 1, 1)
    assert not stray.exists()
    late(ChunkTask(Chunk(3, ()), ""))
    run(config)
    assert not stray.exists()
    assert (stray.parent / "_SUCCESS").exists()
    assert ids_of(config.output) == list(range(80))


def test_a_pattern_that_matches_nothing_is_refused(config: ScoringConfig, source: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give a file, a folder, a pattern"):
        run(config.replace(input=f"{source}/*.csv"))
    assert not Path(str(config.output)).exists()


def test_a_password_in_the_inputs_address_does_not_reach_the_manifest(
    config: ScoringConfig, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    fsspec.filesystem("memory").store.clear()
    for path in source.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/u:swordfish@in/{path.name}", path.read_bytes())
    with_password = config.replace(input="memory://u:swordfish@in")
    assert run(with_password)[0].rows == 80
    written = [
        path.read_text() for path in (Path(str(config.output)) / "_sparkinfer").rglob("*.json")
    ]
    assert len(written) > 4
    assert "swordfish" not in "".join(written)


def test_a_second_run_is_refused_while_the_first_lives(config: ScoringConfig) -> None:
    refused: list[str] = []

    def second(task: Any) -> None:
        if task.chunk.number == 1:
            with pytest.raises(OutputError) as raised:
                run(config)
            refused.append(raised.value.message)

    result, _ = run(config, before_chunk=second)
    assert str(os.getpid()) in refused[0]
    assert result.rows == 80
    assert ids_of(config.output) == list(range(80))


def test_a_run_that_fails_before_its_start_leaves_nothing(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, *asked: Any) -> Any:
        raise ConfigError("no")

    monkeypatch.setattr(MadeUpEngine, "on_one_worker", refuse)
    with pytest.raises(ConfigError):
        run(config)
    assert not Path(str(config.output)).exists()


def test_rows_that_an_engine_loses_are_not_published(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MadeUpEngine._write
    monkeypatch.setattr(
        MadeUpEngine,
        "_write",
        lambda self, plan, task, table: whole(self, plan, task, table.slice(1)),
    )
    with pytest.raises(JobError, match="chunk 0 has 20 rows but 19 were written"):
        run(config)
    assert ids_of(config.output) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    # Lazily: the traceback of a write that failed may hold its file for a moment longer.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as handle:
        while True:
            handle.write(b"x" * 4096)


def test_a_full_disk_is_an_error_and_the_run_goes_on_once_there_is_room(
    config: ScoringConfig, small_disk: Path
) -> None:
    config = config.replace(output=str(small_disk / "out"))
    ballast = small_disk / "ballast"

    def fill(task: Any) -> None:
        if task.chunk.number == 2:
            fill_up(ballast)

    with pytest.raises(JobError, match="No space left"):
        run(config, before_chunk=fill)
    assert ids_of(config.output) == list(range(40))
    ballast.unlink()
    assert run(config)[1].scored == [2, 3]
    assert ids_of(config.output) == list(range(80))
