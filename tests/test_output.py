from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import ConfigError, OutputError
from sparkinfer.jobs.output import Output
from sparkinfer.storage import join, names_in


def scored_file(path: Path, errors: list[str | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"error": pa.array(errors, pa.string())}), path)


def test_an_absent_or_empty_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty", "a/b/c"):
        Output(str(tmp_path / name), overwrite=False).check()
    assert not (tmp_path / "absent").exists()


def test_what_a_dead_run_staged_does_not_block_the_next(tmp_path: Path) -> None:
    scored_file(tmp_path / "_sparkinfer" / "staging" / "x" / "part-0.parquet", [None])
    Output(str(tmp_path), overwrite=False).check()


def test_a_folder_with_results_needs_overwrite(tmp_path: Path) -> None:
    scored_file(tmp_path / "part-0.parquet", [None])
    with pytest.raises(OutputError, match="not empty .*'part-0.parquet'.*--overwrite"):
        Output(str(tmp_path), overwrite=False).check()
    with pytest.raises(OutputError, match="no '_sparkinfer' folder, so no run wrote it"):
        Output(str(tmp_path), overwrite=True).check()
    (tmp_path / "_sparkinfer").mkdir()
    (tmp_path / "_sparkinfer" / "result.json").write_text("{}")
    Output(str(tmp_path), overwrite=True).check()


@pytest.mark.parametrize("source", ["out", "out/", "out/part-0.parquet", "", "./out"])
def test_an_output_that_holds_the_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output = Output("out", overwrite=True)
    with pytest.raises(ConfigError, match="hold one another"):
        output.refuse_overlap(source or str(tmp_path))
    output.refuse_overlap("output.parquet")


def test_a_publication_that_fails_leaves_the_old_files_alone(tmp_path: Path) -> None:
    output = Output(str(tmp_path), overwrite=True)
    scored_file(Path(output.staging_folder("a")) / "part-new.parquet", [None])
    scored_file(tmp_path / "part-old.parquet", [None])
    with pytest.raises(FileNotFoundError):
        output.publish(output.staging_folder("a"), ["part-new.parquet", "part-gone.parquet"])
    assert names_in(str(tmp_path)) == ["_sparkinfer", "part-old.parquet"]


def test_overwrite_never_touches_what_no_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "_sparkinfer").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="'thesis.tex', which no run wrote"):
        Output(str(tmp_path), overwrite=True).check()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below", "file/far/below"):
        with pytest.raises(OutputError, match=f"{tmp_path}/file' is a file, expected a folder"):
            Output(str(tmp_path / path), overwrite=True).check()


def test_an_unknown_kind_of_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="nosuchfs://bucket/x"):
        Output("nosuchfs://bucket/x", overwrite=False).check()


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_publishing_replaces_the_old_files_and_marks_the_end(tmp_path: Path, kind: str) -> None:
    if kind == "local":
        path = str(tmp_path / "out")
        scored_file(tmp_path / "out" / "part-old.parquet", [None])
        scored_file(tmp_path / "out" / "_sparkinfer" / "staging" / "a" / "part-new.parquet", [None])
    else:
        import fsspec

        path = f"memory://{tmp_path.name}/out"
        fs = fsspec.filesystem("memory")
        fs.pipe_file(f"/{tmp_path.name}/out/part-old.parquet", b"old")
        fs.pipe_file(f"/{tmp_path.name}/out/_sparkinfer/staging/a/part-new.parquet", b"new")
    output = Output(path, overwrite=True)
    output.check()
    output.record("{}")
    output.publish(output.staging_folder("a"), ["part-new.parquet"])
    output.drop(output.staging_folder("a"))
    assert names_in(path) == ["_sparkinfer", "part-new.parquet"]
    assert names_in(join(path, "_sparkinfer")) == ["result.json"]
    output.finish()
    assert names_in(path) == ["_SUCCESS", "_sparkinfer", "part-new.parquet"]


def test_publishing_clears_away_what_killed_runs_staged(tmp_path: Path) -> None:
    output = Output(str(tmp_path), overwrite=False)
    for attempt in ("dead", "a"):
        scored_file(Path(output.staging_folder(attempt)) / "part-0.parquet", [None])
    output.record("{}")
    output.publish(output.staging_folder("a"), ["part-0.parquet"])
    assert names_in(str(tmp_path / "_sparkinfer")) == ["result.json"]


def test_what_another_run_published_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = Output(str(tmp_path), overwrite=False)
    output.check()
    staging = output.staging_folder("a")
    scored_file(Path(staging) / "part-mine.parquet", [None])
    scored_file(tmp_path / "part-theirs.parquet", [None])
    with pytest.raises(OutputError, match="not empty"):
        output.publish(staging, ["part-mine.parquet"])
    assert names_in(str(tmp_path)) == ["_sparkinfer", "part-theirs.parquet"]


def test_dropping_one_attempt_leaves_the_others(tmp_path: Path) -> None:
    output = Output(str(tmp_path), overwrite=False)
    for attempt in ("a", "b"):
        scored_file(Path(output.staging_folder(attempt)) / "part-0.parquet", [None])
    output.drop(output.staging_folder("a"))
    assert names_in(str(tmp_path / "_sparkinfer" / "staging")) == ["b"]
    output.drop(output.staging_folder("b"))
    assert names_in(str(tmp_path)) == []


def test_an_output_that_cannot_be_written_is_named() -> None:
    with pytest.raises(OutputError, match="'/proc/nothing/here' cannot be written"):
        Output("/proc/nothing/here", overwrite=False).prepare()


def test_rows_and_errors_are_counted_from_footers(tmp_path: Path) -> None:
    scored_file(tmp_path / "a.parquet", [None, "bad", None])
    scored_file(tmp_path / "b.parquet", [])
    output = Output(str(tmp_path), overwrite=False)
    assert output.count(str(tmp_path), ["a.parquet", "b.parquet"], "") == (3, 1)
