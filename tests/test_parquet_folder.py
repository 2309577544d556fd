"""The visible part of an output."""

from __future__ import annotations

import errno
import io
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparkinfer.sinks.parquet
from sparkinfer.exceptions import OutputError
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.ports import Publication, Seen
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.storage import join, make_folder, names_in, remove, write_text

RUN = "0123abcd"


def parquet(text: str) -> bytes:
    """Returns a file of one row."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"name": [text]}), buffer)
    return buffer.getvalue()


def prepare(folder: str, chunk: int, *names: str, epoch: int = 1) -> Publication:
    """Stages files, each with its name as its content."""
    staging = join(folder, "_sparkinfer", "staging", f"{epoch:08d}", "attempt")
    make_folder(staging)
    for name in names:
        fs, path = fsspec.core.url_to_fs(join(staging, name))
        fs.pipe_file(path, parquet(name))
    return ParquetFolder(folder, RUN).prepare(Chunk(chunk, ()), staging, names)


def visible(folder: str) -> dict[str, str]:
    fs, root = fsspec.core.url_to_fs(folder)
    names = [name for name in names_in(folder) if name != "_sparkinfer"]
    return {name: _name_in(fs.cat_file(f"{root}/{name}")) for name in names}


def _name_in(content: bytes) -> str:
    [name] = pq.read_table(io.BytesIO(content))["name"].to_pylist()
    return str(name)


def test_files_are_named_after_chunk_place_and_run(folder: str) -> None:
    publication = prepare(folder, 12, "b.parquet", "a.parquet")
    assert publication.files == {
        "part-00000012-000-0123abcd.parquet": len(parquet("b.parquet")),
        "part-00000012-001.00000001-0123abcd.parquet": len(parquet("a.parquet")),
    }
    assert publication.rows == 2
    assert list(publication.sources.values()) == [
        "staging/00000001/attempt/b.parquet",
        "staging/00000001/attempt/a.parquet",
    ]
    sink = ParquetFolder(folder, RUN)
    assert sink.look() == Seen({}, ["00000001"])
    sink.publish(publication, ())
    assert sink.look().files == publication.files
    assert list(visible(folder).values()) == ["b.parquet", "a.parquet"]
    assert [sink.chunk_of(name) for name in publication.files] == [12, 12]
    assert ParquetFolder(folder, "89abcdef").chunk_of(next(iter(publication.files))) is None


def test_a_publication_is_staged_then_published_and_missing_if_it_is_nowhere(folder: str) -> None:
    sink = ParquetFolder(folder, RUN)
    publication = prepare(folder, 3, "a.parquet", "b.parquet")
    assert sink.state(publication, sink.look()) == "staged"
    sink.publish(publication, ())
    assert sink.state(publication, sink.look()) == "published"
    remove(join(folder, "part-00000003-001.00000001-0123abcd.parquet"))
    assert sink.state(publication, sink.look()) == "missing"


@pytest.mark.parametrize("at", ["a.parquet", "b.parquet"])
def test_publishing_may_be_done_again_after_it_failed(
    folder: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    sink = ParquetFolder(folder, RUN)
    publication = prepare(folder, 3, "a.parquet", "b.parquet")
    move = sparkinfer.sinks.parquet.move

    def fail(source: str, target: str) -> None:
        if source.endswith(at):
            raise OSError(errno.EIO, "the mount is gone for a moment")
        move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(sparkinfer.sinks.parquet, "move", fail)
        with pytest.raises(OSError, match="gone for a moment"):
            sink.publish(publication, ())
    assert sink.state(publication, sink.look()) == "staged"
    for _ in range(2):
        sink.publish(publication, ())
        assert list(visible(folder).values()) == ["a.parquet", "b.parquet"]


def test_a_file_that_is_gone_from_both_places_is_an_error(folder: str) -> None:
    publication = prepare(folder, 3, "a.parquet")
    remove(join(folder, "_sparkinfer", "staging"))
    with pytest.raises(FileNotFoundError):
        ParquetFolder(folder, RUN).publish(publication, ())


def test_only_the_first_file_of_a_chunk_has_the_name_of_an_earlier_one(folder: str) -> None:
    one, other = (prepare(folder, 3, "a", "b", "c", epoch=epoch).files for epoch in (1, 2))
    assert set(one) & set(other) == {"part-00000003-000-0123abcd.parquet"}
    assert next(iter(one)) == next(iter(other))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 1), (1, 3), (3, 2)])
def test_a_later_generation_takes_the_place_of_the_one_before(
    folder: str, before: int, after: int
) -> None:
    sink = ParquetFolder(folder, RUN)
    old = prepare(folder, 3, *(f"old-{index}" for index in range(before)))
    sink.publish(old, ())
    new = prepare(folder, 3, *(f"new-{index}" for index in range(after)))
    assert sink.state(new, sink.look()) == "staged"
    for _ in range(2):
        sink.publish(new, old.files)
        assert list(visible(folder).values()) == [f"new-{index}" for index in range(after)]


def test_a_half_copied_file_is_copied_again(folder: str) -> None:
    publication = prepare(folder, 3, "a.parquet")
    [name] = publication.files
    write_text(join(folder, name), "a.pa")
    sink = ParquetFolder(folder, RUN)
    assert sink.state(publication, sink.look()) == "staged"
    sink.publish(publication, ())
    assert sink.look().files == publication.files


def test_what_waits_is_staged_whatever_has_its_name_and_size(folder: str) -> None:
    sink = ParquetFolder(folder, RUN)
    old = prepare(folder, 3, "old")
    sink.publish(old, ())
    new = prepare(folder, 3, "new")
    assert old.files == new.files
    assert sink.state(new, sink.look()) == "staged"
    sink.publish(new, old.files)
    assert list(visible(folder).values()) == ["new"]


def test_a_file_is_told_from_another_of_its_size(folder: str) -> None:
    sink = ParquetFolder(folder, RUN)
    first, second = prepare(folder, 1, "one"), prepare(folder, 2, "two")
    for publication in (first, second):
        sink.publish(publication, ())
        assert sink.is_true(publication)
    fs, root = fsspec.core.url_to_fs(folder)
    [one], [two] = first.files, second.files
    assert first.files[one] == second.files[two]
    assert not sink.is_true(replace(first, rows=2))
    fs.copy(f"{root}/{two}", f"{root}/{one}")
    assert not sink.is_true(first)
    assert sink.is_true(replace(first, digests={}))  # as an older version recorded it
    fs.pipe_file(f"{root}/{one}", bytes(first.files[one]))
    assert not sink.is_true(replace(first, digests={}))
    remove(join(folder, one))
    assert not sink.is_true(first)


@pytest.mark.parametrize("name", ["part-00000001-000-0123abcd.parquet", "_SUCCESS"])
def test_a_folder_is_none_of_the_files_of_a_run(folder: str, name: str) -> None:
    make_folder(join(folder, name))
    write_text(join(folder, name, "x"), "somebody's")
    sink = ParquetFolder(folder)
    assert (sink.of_runs({RUN}), sink.is_finished()) == ([], False)
    with pytest.raises(OutputError, match=f"holds '{name}', which no run wrote there"):
        sink.refuse_strangers({RUN})


def test_files_of_some_runs_are_told_from_all_others(folder: str) -> None:
    make_folder(folder)
    ours = [
        "part-00000001-000-0123abcd.parquet",
        "part-00000001-001.00000003-0123abcd.parquet",
        "part-00000002-000.parquet",
    ]
    for name in (*ours, "part-00000001-000-89abcdef.parquet", "part-1.parquet", "_SUCCESS"):
        write_text(join(folder, name), "")
    assert ParquetFolder(folder).of_runs({RUN, ""}) == ours
    assert ParquetFolder(folder).of_runs({RUN}) == ours[:2]


def test_the_mark_of_the_end_comes_and_goes(folder: str) -> None:
    sink = ParquetFolder(folder, RUN)
    make_folder(folder)
    assert not sink.is_finished()
    sink.finish()
    assert sink.is_finished()
    sink.unfinish()
    sink.unfinish()
    assert not sink.is_finished()
