from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkinfer.exceptions import ConfigError, OutputError
from sparkinfer.jobs.manifest import Manifest
from sparkinfer.jobs.output import Output
from sparkinfer.storage import join, make_folder, names_in, walk, write_text


def scored_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"error": pa.array([None], pa.string())}), path)


def test_an_absent_or_empty_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty", "a/b/c"):
        Output(str(tmp_path / name)).check(overwrite=False)
    assert not (tmp_path / "absent").exists()


def test_what_a_dead_run_staged_does_not_block_the_next(tmp_path: Path) -> None:
    scored_file(tmp_path / "_sparkinfer" / "staging" / "x" / "part-0.parquet")
    Output(str(tmp_path)).check(overwrite=False)


def test_a_folder_that_no_run_wrote_is_refused(tmp_path: Path) -> None:
    scored_file(tmp_path / "part-0.parquet")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not empty.*'part-0.parquet'.*no run wrote it"):
            Output(str(tmp_path)).check(overwrite)


def test_files_of_a_run_without_its_manifest_need_overwrite(tmp_path: Path) -> None:
    scored_file(tmp_path / "part-00000000-000-0123abcd.parquet")
    records = tmp_path / "_sparkinfer" / "chunks"
    records.mkdir(parents=True)
    (records / "00000000.000-0123abcd.json").write_text("{}")
    with pytest.raises(OutputError, match="-0123abcd.parquet' but no manifest.*--overwrite"):
        Output(str(tmp_path)).check(overwrite=False)
    Output(str(tmp_path)).check(overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "part-00000000-000.parquet",  # as an older version names files
        "part-00000000-000-89abcdef.parquet",  # of a run of another output
        "part-00000-7d0c2f2e-c000.snappy.parquet",  # of Spark
        "part-0.parquet",
    ],
)
def test_a_strangers_part_is_never_taken_for_ours(
    tmp_path: Path, overwrite: bool, name: str
) -> None:
    records = tmp_path / "_sparkinfer" / "chunks"
    records.mkdir(parents=True)
    (records / "00000000.000-0123abcd.json").write_text("{}")
    scored_file(tmp_path / "part-00000000-000-0123abcd.parquet")
    scored_file(tmp_path / name)
    with pytest.raises(OutputError, match=f"holds {name!r}, which no run wrote there; move it"):
        Output(str(tmp_path)).check(overwrite)


@pytest.mark.parametrize("source", ["out", "out/", "out/part-0.parquet", "", "./out"])
def test_an_output_that_holds_the_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output = Output("out")
    with pytest.raises(ConfigError, match="overlap; name another folder"):
        output.refuse_overlap(["in", source or str(tmp_path)])
    output.refuse_overlap(["output.parquet"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_run_wrote_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "_sparkinfer").mkdir()
    (tmp_path / "_sparkinfer" / "manifest.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="'thesis.tex', which no run wrote there"):
        Output(str(tmp_path)).check(overwrite)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below", "file/far/below"):
        with pytest.raises(OutputError, match=f"{tmp_path}/file' is a file, expected a folder"):
            Output(str(tmp_path / path)).check(overwrite=True)


def test_an_unknown_kind_of_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="nosuchfs://bucket/x"):
        Output("nosuchfs://bucket/x").check(overwrite=False)


def test_an_output_that_cannot_be_written_is_named() -> None:
    with pytest.raises(OutputError, match="'/proc/nothing/here' cannot be written"):
        Output("/proc/nothing/here").prepare()


def stage(output: Output, epoch: int, *names: str) -> str:
    staging = output.staging_folder(epoch, "attempt")
    make_folder(staging)
    for name in names:
        write_text(join(staging, name), name)
    return staging


def test_what_an_earlier_epoch_staged_is_taken_away_and_what_a_later_one_staged_stays(
    folder: str,
) -> None:
    output = Output(folder)
    old, new = stage(output, 1, "old.parquet"), stage(output, 2, "new.parquet")
    output.fence(2)
    assert (names_in(old), names_in(new)) == ([], ["new.parquet"])


def test_what_other_runs_left_is_forgotten(folder: str) -> None:
    output = Output(folder)
    kept = [
        "chunks/00000001.000-0123abcd.json",
        "input/mine/b.parquet",
        "input/table/c.parquet",
        "lease/epoch",
        "manifest-000002.json",
        "runs/000001-0123abcd.json",
    ]
    gone = [
        "chunks/00000001.000-89abcdef.json",
        "chunks/00000002.json",
        "input/old/b.parquet",
        "manifest-000001.json",
        "manifest.json",
        "runs/000000-89abcdef.json",
        "runs/000002.json",
    ]
    for name in (*kept, *gone):
        path = join(folder, "_sparkinfer", name)
        make_folder(path.rsplit("/", 1)[0])
        write_text(path, "")
    manifest = Manifest(
        settings={},
        verdict={},
        labels=(),
        input_files=(),
        read_files=("_copies/mine/b.parquet", "table/c.parquet", "a"),
        chunks=(),
        created="",
        written_by="",
        run="0123abcd",
        number=2,
    )
    output.forget(manifest, lambda act: act())
    assert sorted(walk(join(folder, "_sparkinfer"))) == kept


def test_a_work_folder_that_holds_nothing_but_a_lease_is_unused(folder: str) -> None:
    output = Output(folder)
    make_folder(output.lease_folder)
    write_text(join(output.lease_folder, "epoch"), "")
    assert output.is_unused()
    write_text(join(folder, "_sparkinfer", "manifest.json"), "")
    assert not output.is_unused()


def test_an_output_that_holds_nothing_is_removed_and_one_that_holds_something_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "out" / "_sparkinfer").mkdir(parents=True)
    Output(str(tmp_path / "out")).remove_if_empty()
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "_sparkinfer" / "lease").mkdir(parents=True)
    Output(str(tmp_path / "out")).remove_if_empty()
    assert (tmp_path / "out" / "_sparkinfer" / "lease").exists()
