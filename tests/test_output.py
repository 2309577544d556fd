import errno
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer.jobs.output
from sparkinfer.exceptions import ConfigError, OutputError
from sparkinfer.jobs.output import Output
from sparkinfer.plan.chunks import Chunk
from sparkinfer.storage import join, make_folder, names_in, write_text


def scored_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"error": pa.array([None], pa.string())}), path)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output folder on a disk, and on a store that cannot rename."""
    if request.param == "local":
        return str(tmp_path / "out")
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/out"


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


def test_files_without_a_manifest_need_overwrite(tmp_path: Path) -> None:
    scored_file(tmp_path / "part-0.parquet")
    (tmp_path / "_sparkinfer").mkdir()
    with pytest.raises(OutputError, match="'part-0.parquet' but no manifest.*--overwrite"):
        Output(str(tmp_path)).check(overwrite=False)
    Output(str(tmp_path)).check(overwrite=True)
    (tmp_path / "_sparkinfer" / "manifest.json").write_text("{}")
    Output(str(tmp_path)).check(overwrite=False)


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
    with pytest.raises(OutputError, match="'thesis.tex', which no run wrote"):
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


def test_files_are_published_under_names_that_their_chunk_decides(folder: str) -> None:
    output = Output(folder)
    staging = stage(output, 1, "b-random.parquet", "a-random.parquet")
    moves = output.moves(Chunk(12, ()), staging, ["b-random.parquet", "a-random.parquet"])
    output.publish(moves)
    names = {move.name: move.size for move in moves}
    assert names == {"part-00000012-000.parquet": 16, "part-00000012-001.parquet": 16}
    assert output.sizes() == names
    assert names_in(folder) == ["_sparkinfer", *names]
    again = stage(output, 1, "c-random.parquet")
    output.publish(output.moves(Chunk(12, ()), again, ["c-random.parquet"]))
    assert names_in(folder) == ["_sparkinfer", *names]
    fs, name = fsspec.core.url_to_fs(join(folder, "part-00000012-000.parquet"))
    assert fs.cat_file(name) == b"c-random.parquet"


def test_what_an_earlier_epoch_staged_cannot_be_published(folder: str) -> None:
    output = Output(folder)
    old, new = stage(output, 1, "old.parquet"), stage(output, 2, "new.parquet")
    moves = output.moves(Chunk(0, ()), old, ["old.parquet"])
    output.fence(2)
    with pytest.raises(FileNotFoundError):
        output.publish(moves)
    with pytest.raises(FileNotFoundError):
        output.moves(Chunk(0, ()), old, ["old.parquet"])
    assert names_in(folder) == ["_sparkinfer"]
    output.publish(output.moves(Chunk(0, ()), new, ["new.parquet"]))
    assert names_in(folder) == ["_sparkinfer", "part-00000000-000.parquet"]


def test_publishing_may_be_done_again_after_it_failed(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(folder)
    staging = stage(output, 1, "a.parquet", "b.parquet")
    moves = output.moves(Chunk(3, ()), staging, ["a.parquet", "b.parquet"])
    move = sparkinfer.jobs.output.move

    def fail_at_b(source: str, target: str) -> None:
        if source.endswith("b.parquet"):
            raise OSError(errno.EIO, "the mount is gone for a moment")
        move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(sparkinfer.jobs.output, "move", fail_at_b)
        with pytest.raises(OSError, match="gone for a moment"):
            output.publish(moves)
    output.publish(moves)
    assert names_in(folder) == ["_sparkinfer", *(move.name for move in moves)]


def test_only_the_files_to_keep_are_left_by_clearing(folder: str) -> None:
    output = Output(folder)
    make_folder(folder)
    for name in ("part-1.parquet", "part-2.parquet", ".part-2.parquet.crc", "_SUCCESS"):
        write_text(join(folder, name), "")
    stage(output, 1, "x.parquet")
    output.remove_published(keep={"part-1.parquet"})
    assert names_in(folder) == ["_sparkinfer", "part-1.parquet"]
    assert names_in(output.staging_folder(1, "attempt")) == ["x.parquet"]


def test_all_but_the_lease_is_forgotten(folder: str) -> None:
    output = Output(folder)
    for name in ("lease/epoch", "chunks/1.json", "manifest.json", "input/a/b.parquet"):
        path = join(folder, "_sparkinfer", name)
        make_folder(path.rsplit("/", 1)[0])
        write_text(path, "")
    output.remove_records()
    assert names_in(join(folder, "_sparkinfer")) == ["lease"]


def test_an_output_in_which_nothing_was_done_is_removed(folder: str) -> None:
    output = Output(folder)
    make_folder(output.lease_folder)
    write_text(join(output.lease_folder, "epoch"), "")
    output.remove_empty()
    assert names_in(folder) == []
    make_folder(output.lease_folder)
    write_text(join(folder, "_sparkinfer", "manifest.json"), "")
    output.remove_empty()
    assert names_in(folder) == ["_sparkinfer"]


def test_the_mark_of_the_end_comes_and_goes(folder: str) -> None:
    output = Output(folder)
    make_folder(folder)
    assert not output.is_finished()
    output.finish()
    assert output.is_finished()
    output.unfinish()
    output.unfinish()
    assert not output.is_finished()
