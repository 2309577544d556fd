"""What a later call makes of what an earlier one left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.cli import main
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError, OutputError, ResumeError
from sparkinfer.jobs.result import RunResult
from sparkinfer.models.gate import Verdict
from sparkinfer.plan.prelude import Prelude
from tests.disk import Disk, Killed, ids_of
from tests.made_up_engine import (
    MadeUpEngine,
    add_file,
    job_of_eighty_rows,
    run_made_up,
)
from tests.test_runner import kill_before
from tests.written import (
    edit_manifest,
    edit_record,
    manifest_path,
    manifest_values,
    part_of,
    record_file,
)


@pytest.fixture
def source(config: ScoringConfig) -> Path:
    return Path(str(config.input))


@pytest.fixture
def config(classifier: Path, tmp_path: Path) -> ScoringConfig:
    return job_of_eighty_rows(classifier, tmp_path)


def run(config: ScoringConfig, **options: Any) -> tuple[RunResult, MadeUpEngine]:
    engine = MadeUpEngine(config, **options)
    return run_made_up(config, engine), engine


def visible(config: ScoringConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(str(config.output)).glob("part-*")}


WHOLE = [[[0, 0, 2, 20]], [[0, 2, 2, 20]], [[1, 0, 2, 20]], [[1, 2, 2, 20]]]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        (WHOLE[:3], "'in-1.parquet': rows from 20 are in no chunk"),
        (WHOLE[1:], "'in-0.parquet': rows from 0 are in no chunk"),
        ([*WHOLE, WHOLE[1]], "'in-0.parquet': rows from 20 are in two chunks"),
        ([WHOLE[0], [[0, 1, 3, 30]], *WHOLE[2:]], "rows from 10 are in two chunks"),
        ([*WHOLE[:3], [[1, 2, 2, 21]]], "a chunk expects other row groups"),
        ([*WHOLE[:3], [[1, 2, 3, 20]]], "a chunk expects other row groups"),
        ([], "rows from 0 are in no chunk"),
        ([*WHOLE[:3], [[1, 2, 2, -20]]], "is damaged"),
    ],
)
def test_chunks_that_do_not_hold_each_row_once_are_refused_and_nothing_is_removed(
    config: ScoringConfig, chunks: list[Any], said: str, finished: bool
) -> None:
    if finished:
        run(config)
    else:
        with pytest.raises(Killed):
            run(config, before_chunk=kill_before(3))
    before = visible(config)
    edit_manifest(config.output, chunks=chunks)
    with pytest.raises(ResumeError, match=f"{said}.*--overwrite to score everything again"):
        run(config)
    assert visible(config) == before


def spoil_manifest(content: bytes) -> Callable[[ScoringConfig], None]:
    return lambda config: manifest_path(config.output).write_bytes(content) and None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: edit_manifest(config.output, settings={}),
        lambda config: edit_manifest(config.output, read_files=["in-0.parquet", "../x.parquet"]),
        spoil_manifest(b"\xff\xfe\x00"),
        spoil_manifest(b'{"a":' * 100_000),
        spoil_manifest(b""),
    ],
)
def test_a_damaged_manifest_is_wrong_use_and_told_in_a_line(
    config: ScoringConfig,
    spoil: Callable[[ScoringConfig], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(config)
    before = visible(config)
    spoil(config)
    given = ["--model", str(config.model), "--input", str(config.input), "--input-col", "text"]
    given += ["--engine", "local", "--output", str(config.output), "--label-col", "label"]
    assert main(["score", *given]) == 2
    said = capsys.readouterr().err
    assert "damaged" in said
    assert len(said.splitlines()) == 1
    assert main(["status", str(config.output)]) == 2
    assert visible(config) == before


@pytest.mark.parametrize(
    "changes",
    [{"rows": 19}, {"files": {}}, {"number": 2}, {"files": {"part-00000009-000.parquet": 1}}],
)
def test_a_record_that_does_not_fit_counts_as_absent_and_its_files_stay_until_replaced(
    config: ScoringConfig, changes: dict[str, Any]
) -> None:
    run(config)
    edit_record(config.output, 1, **changes)
    seen: list[list[int]] = []

    def look(task: Any) -> None:
        seen.append(ids_of(config.output))

    result, engine = run(config, parts=2, before_chunk=look)
    assert (engine.scored, result.rows, result.rows_before) == ([1], 80, 60)
    assert seen == [list(range(80))]
    assert ids_of(config.output) == list(range(80))


def test_an_overwriting_run_that_is_broken_off_goes_on_by_the_same_command(
    config: ScoringConfig,
) -> None:
    run(config)
    again = config.replace(overwrite=True)
    with pytest.raises(Killed):
        run(again, before_chunk=kill_before(2))
    assert ids_of(config.output) == list(range(40))
    result, engine = run(again, parts=2)
    assert (engine.scored, result.rows_before) == ([2, 3], 40)
    assert ids_of(config.output) == list(range(80))
    result, engine = run(again)  # what is finished is replaced
    assert (engine.scored, result.rows_before) == ([0, 1, 2, 3], 0)


def change_input(source: Path) -> None:
    add_file(source, 1, rows=11)


@pytest.mark.parametrize(
    ("first", "change", "options"),
    [
        ({"overwrite": False}, lambda source: None, {}),  # another's, broken off
        ({"overwrite": True}, change_input, {}),
        ({"overwrite": True}, lambda source: None, {"max_length": 32}),
        ({"overwrite": True}, lambda source: None, {"max_error_rows": 3}),
    ],
)
def test_an_overwriting_run_replaces_all_that_is_not_its_own(
    config: ScoringConfig,
    source: Path,
    first: dict[str, Any],
    change: Callable[[Path], None],
    options: dict[str, Any],
) -> None:
    with pytest.raises(Killed):
        run(config.replace(**first), before_chunk=kill_before(2), failing=range(40))
    change(source)
    result, engine = run(config.replace(overwrite=True, **{**options, "max_error_rows": 80}))
    rows_before = 40 if options == {"max_error_rows": 3} else 0
    assert (result.rows_before, engine.scored[0]) == (rows_before, rows_before // 20)
    if options == {"max_error_rows": 3}:
        with pytest.raises(Killed):
            run(config.replace(overwrite=True), before_chunk=kill_before(2), failing=range(40))
        with pytest.raises(JobError, match="allows 3"):
            run(config.replace(overwrite=True, **options))
        assert ids_of(config.output) == list(range(40))  # begun anew: three in each chunk


ASKED: list[Any] = []


class Gated(MadeUpEngine):
    """Its gate decides as the processor asks, or else for bfloat16."""

    def on_one_worker(self, act: Any, warm_up: Any) -> Verdict:
        found = super().on_one_worker(act, warm_up)
        way = act.args[0].options.way
        ASKED.append(way)
        return replace(found, accepted=way or replace(found.accepted, dtype="bfloat16"))


def test_a_resumed_run_has_the_way_of_the_first_one_tried_and_no_other(
    config: ScoringConfig,
) -> None:
    with pytest.raises(Killed):
        run(config, before_chunk=kill_before(2))
    engine = Gated(config)
    ASKED.clear()
    assert run_made_up(config, engine).rows == 80
    assert [str(way) for way in ASKED] == ["none in float32"]
    with pytest.raises(Killed):
        run(config.replace(overwrite=True), before_chunk=kill_before(2))
    assert run_made_up(config.replace(overwrite=True), engine).rows_before == 40


def test_a_way_that_does_not_work_now_is_a_failed_job_and_overwriting_takes_another(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for overwrite in (False, True):
        with pytest.raises(Killed):
            run(config.replace(overwrite=True), before_chunk=kill_before(2))
        follow = Prelude.follow

        class Fails(MadeUpEngine):
            def on_one_worker(self, act: Any, warm_up: Any) -> Verdict:
                if act.args[0].options.way is not None:
                    raise JobError("the output was begun with none in float32, which does not work")
                return super().on_one_worker(act, warm_up)

        again = config.replace(overwrite=overwrite)
        if not overwrite:
            with pytest.raises(JobError, match="was begun with none in float32"):
                run_made_up(again, Fails(again))
        else:
            assert run_made_up(again, Fails(again)).rows_before == 0
        assert Prelude.follow is follow


def test_files_that_are_done_may_vanish_from_a_growing_input(
    config: ScoringConfig, source: Path
) -> None:
    incremental = config.replace(incremental=True)
    run(incremental)
    (source / "in-0.parquet").unlink()
    with pytest.raises(ResumeError, match=r"in-0.parquet is gone\. All rows .* give --incremental"):
        run(config)
    add_file(source, 2)
    result, engine = run(incremental)
    assert (engine.scored, result.rows, result.rows_before) == ([4, 5], 120, 80)
    assert ids_of(config.output) == list(range(120))
    assert run(incremental)[1].scored == []
    add_file(source, 0)  # it is back, with another time
    with pytest.raises(ResumeError, match=r"in-0.parquet changed"):
        run(incremental)


def test_files_whose_rows_are_still_to_be_scored_may_not_vanish(
    config: ScoringConfig, source: Path
) -> None:
    incremental = config.replace(incremental=True)
    with pytest.raises(Killed):
        run(incremental, before_chunk=kill_before(3))
    (source / "in-0.parquet").unlink()
    assert run(incremental)[0].rows == 80  # all of it is done
    part_of(config.output, 0).unlink()
    with pytest.raises(ResumeError, match=r"in-0.parquet is gone\. Undo"):
        run(incremental)
    assert ids_of(config.output) == list(range(20, 80))


def test_errors_of_rows_without_a_text_are_no_reason_to_retry(
    config: ScoringConfig,
) -> None:
    with pytest.raises(JobError) as raised:
        run(config.replace(max_error_rows=3))
    assert "x 'text is null'" in raised.value.message
    assert "--retry-errors" not in raised.value.message
    with pytest.raises(JobError, match="fix the cause and run with --retry-errors"):
        run(config.replace(max_error_rows=3, overwrite=True), failing=range(80))


def test_the_manifest_knows_the_runs_that_it_replaced(config: ScoringConfig) -> None:
    run(config)
    first = manifest_values(config.output)["run"]
    run(config.replace(overwrite=True))
    values = json.loads(manifest_path(config.output).read_text())
    assert (values["replaced"], values["number"], values["overwrites"]) == ([first], 2, True)
    assert values["run"] != first


def swap(config: ScoringConfig) -> None:
    """Gives a file the content of another of its size."""
    part_of(config.output, 1).write_bytes(part_of(config.output, 3).read_bytes())
    edit_record(config.output, 1, files={part_of(config.output, 1).name: size_of(config, 3)})


def size_of(config: ScoringConfig, chunk: int) -> int:
    return part_of(config.output, chunk).stat().st_size


def spoil_footer(config: ScoringConfig) -> None:
    path = part_of(config.output, 1)
    path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8)


@pytest.mark.parametrize("spoil", [swap, spoil_footer])
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_that_was_replaced_by_another_of_its_size_has_its_chunk_scored_again(
    config: ScoringConfig, spoil: Callable[[ScoringConfig], None], finished: bool
) -> None:
    run(config)
    if not finished:
        (Path(str(config.output)) / "_SUCCESS").unlink()
    spoil(config)
    assert run(config)[1].scored == [1]
    assert ids_of(config.output) == list(range(80))


def test_records_do_not_stand_for_chunks_with_other_rows(config: ScoringConfig) -> None:
    run(config)
    chunks = [WHOLE[1], WHOLE[0], *WHOLE[2:]]
    edit_manifest(config.output, chunks=chunks)
    assert run(config)[1].scored == [0, 1]
    assert ids_of(config.output) == list(range(80))


def test_a_manifest_from_an_older_copy_grows_anew_without_the_rows_of_the_lost_one(
    config: ScoringConfig, source: Path
) -> None:
    incremental = config.replace(incremental=True)
    run(incremental)
    older = manifest_path(config.output).read_bytes()
    add_file(source, 3)
    run(incremental)
    manifest_path(config.output).unlink()
    (Path(str(config.output)) / "_sparkinfer" / "manifest-000001.json").write_bytes(older)
    add_file(source, 2)  # the chunks of this one come first now
    assert run(incremental)[1].scored == [4, 5, 6, 7]
    assert ids_of(config.output) == list(range(160))


def test_records_and_files_of_another_output_are_a_strangers(config: ScoringConfig) -> None:
    other = config.replace(output=f"{config.output}-other")
    run(config)
    run(other)
    copied = [part_of(other.output, 0), record_file(other.output, 0)]
    for path, folder in zip(copied, (".", "_sparkinfer/chunks"), strict=True):
        shutil.copy(path, Path(str(config.output)) / folder)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=f"holds '{copied[0].name}', which no run wrote"):
            run(config.replace(overwrite=overwrite))
    (Path(str(config.output)) / copied[0].name).unlink()
    assert run(config)[1].scored == []


def test_a_run_whose_manifest_was_not_finished_begins_by_the_same_command(
    config: ScoringConfig, source: Path
) -> None:
    work = Path(str(config.output)) / "_sparkinfer"
    work.mkdir(parents=True)
    (work / "manifest-000001.json").write_bytes(b"{")
    run(config.replace(incremental=True))
    assert manifest_path(config.output).name == "manifest-000002.json"
    add_file(source, 2)
    (work / "manifest-000003.json").write_bytes(b"")
    assert run(config.replace(incremental=True))[1].scored == [4, 5]
    assert ids_of(config.output) == list(range(120))


def test_an_overwriting_run_that_is_killed_before_it_begins_leaves_the_old_one_finished(
    config: ScoringConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = config.replace(overwrite=True)
    run(again)
    disk = Disk(config.output, monkeypatch).watch_changes()
    disk.kill_at(0, config.output)
    with pytest.raises(Killed):
        run(again)
    disk.fatal = None
    assert (Path(str(config.output)) / "_SUCCESS").exists()
    assert run(again)[1].scored == [0, 1, 2, 3]


def test_what_is_added_to_an_overwriting_run_is_no_reason_to_go_on_with_all_of_it(
    config: ScoringConfig, source: Path
) -> None:
    run(config.replace(overwrite=True))
    add_file(source, 2)
    with pytest.raises(Killed):
        run(config.replace(incremental=True), before_chunk=kill_before(5))
    engine = run(config.replace(overwrite=True))[1]
    assert engine.scored == [0, 1, 2, 3, 4, 5]


def test_a_damaged_copy_of_the_input_does_not_keep_a_run_from_overwriting(
    config: ScoringConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    lines = "".join(f"{i},film {i},{i % 2}\n" for i in range(80))
    (folder / "in.csv").write_text(f"id,text,label\n{lines}")
    again = config.replace(input=str(folder), overwrite=True)
    with pytest.raises(Killed):
        run(again, before_chunk=kill_before(2))
    for copy in (Path(str(config.output)) / "_sparkinfer" / "input").rglob("*.parquet"):
        copy.write_bytes(b"")
    assert run(again)[0].rows == 80
