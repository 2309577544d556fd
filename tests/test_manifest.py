from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.exceptions import ResumeError
from sparkinfer.jobs.differences import refuse_other_input, refuse_other_settings
from sparkinfer.jobs.manifest import Manifest, create_manifest, read_manifest, remove_manifests
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.snapshot import InputFile
from sparkinfer.rows.reading import Piece
from tests.written import edit_manifest, manifest_values

MANIFEST = Manifest(
    settings={"task": "text-classification", "max_length": None},
    verdict={"accepted": "none float32"},
    labels=("no", "yes"),
    input_files=(InputFile("a", 10, "x"), InputFile("b", 20, "y")),
    read_files=("a", "day=1/b"),
    chunks=(
        Chunk(0, (Piece("a", 0, 2, 20), Piece("day=1/b", 0, 1, 5))),
        Chunk(1, (Piece("day=1/b", 1, 1, 5),)),
        Chunk(2, ()),
    ),
    created="2026-01-01T00:00:00+00:00",
    written_by="sparkinfer 0",
    run="0123abcd",
    replaced=("89abcdef",),
    overwrites=True,
    number=1,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The manifest's file; a chunk of it has a record."""
    (tmp_path / "_sparkinfer" / "chunks").mkdir(parents=True)
    (tmp_path / "_sparkinfer" / "chunks" / "00000001.000-0123abcd.json").write_text("{}")
    assert create_manifest(str(tmp_path), MANIFEST)
    return tmp_path / "_sparkinfer" / "manifest-000001.json"


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path, path: Path) -> None:
    assert read_manifest(str(tmp_path)) == MANIFEST
    assert MANIFEST.rows == 30


def test_a_piece_within_row_groups_comes_back_and_others_are_stored_short(
    tmp_path: Path, path: Path
) -> None:
    pieces = (Piece("a", 0, 2, 20), Piece("a", 2, 3, 7, before=1), Piece("a", 5, 1, 2, after=9))
    manifest = replace(MANIFEST, chunks=(Chunk(0, pieces),))
    manifest = replace(manifest, number=2)
    assert create_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest
    stored = manifest_values(tmp_path)
    assert stored["chunks"] == [[[0, 0, 2, 20], [0, 2, 3, 7, 1, 0], [0, 5, 1, 2, 0, 9]]]


def test_the_manifest_with_the_highest_number_counts(tmp_path: Path, path: Path) -> None:
    later = replace(MANIFEST, number=12, run="89abcdef")
    assert create_manifest(str(tmp_path), later)
    assert read_manifest(str(tmp_path)) == later
    remove_manifests(str(tmp_path), below=12)
    assert [file.name for file in path.parent.glob("m*")] == ["manifest-000012.json"]
    path.parent.joinpath("manifest-000012.json").rename(path.parent / "manifest-000013.json")
    with pytest.raises(ResumeError, match="says that its number is 12"):
        read_manifest(str(tmp_path))


def test_of_two_runs_that_begin_the_second_does_not_write_its_manifest(
    tmp_path: Path, path: Path
) -> None:
    assert not create_manifest(str(tmp_path), replace(MANIFEST, run="89abcdef"))
    assert read_manifest(str(tmp_path)) == MANIFEST


def test_there_is_no_manifest_in_an_empty_folder(tmp_path: Path) -> None:
    assert read_manifest(str(tmp_path / "absent")) is None


def cut_off(text: str) -> bytes:
    return text[:100].encode()


def with_a_chunk_less(text: str) -> bytes:
    values = json.loads(text)
    del values["chunks"][1]
    return json.dumps(values).encode()


def with_other_settings(text: str) -> bytes:
    return text.replace("text-classification", "text-classificatiom").encode()


def without_checksum(text: str) -> bytes:
    values = json.loads(text)
    del values["checksum"]
    return json.dumps(values).encode()


SPOILT = [
    cut_off,
    with_a_chunk_less,
    with_other_settings,
    without_checksum,
    lambda text: b"",
    lambda text: b"\xff\xfe" + text.encode("utf-16"),
    lambda text: b"[" * 100_000,
    lambda text: b'{"a":' * 100_000,
    lambda text: b"[]",
    lambda text: b"null",
    lambda text: b'{"schema_version": 3}',
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_damaged_or_changed_manifest_is_an_error_that_says_what_to_do(
    tmp_path: Path, path: Path, spoil: Callable[[str], bytes]
) -> None:
    path.write_bytes(spoil(path.read_text()))
    with pytest.raises(
        ResumeError, match="(is damaged|has layout version) .*--overwrite"
    ) as raised:
        read_manifest(str(tmp_path))
    assert raised.value.message.startswith(str(path))
    assert len(raised.value.message) < 2000


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {}},
        {"chunks": [[[0, 0, -2, 20]]]},
        {"chunks": [[[-1, 0, 2, 20]]]},
        {"chunks": [[[7, 0, 2, 20]]]},
        {"chunks": [[["0", 0, 2, 20]]]},
        {"chunks": [[[0, 0, 2.5, 20]]]},
        {"chunks": {"0": []}},
        {"read_files": ["a", "../../etc/passwd"]},
        {"read_files": ["a", "/etc/passwd"]},
        {"input_files": [{"name": "a"}]},
        {"labels": None},
        {"labels": ["no", 1]},
        {"replaced": [[]]},
        {"run": 1},
        {"number": 2},
        {"unknown": 1},
    ],
)
def test_a_manifest_with_a_checksum_is_checked_all_the_same(
    tmp_path: Path, path: Path, changes: dict[str, Any]
) -> None:
    edit_manifest(tmp_path, **changes)
    with pytest.raises(ResumeError, match="is damaged .*--overwrite"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("torn", [b"", b'{"schema_version": 3, "sett'])
def test_a_manifest_whose_writer_died_is_passed_over_if_nothing_was_done_by_it(
    tmp_path: Path, path: Path, torn: bytes
) -> None:
    later = path.with_name("manifest-000002.json")
    later.write_bytes(torn)
    assert read_manifest(str(tmp_path)) == MANIFEST
    for name in ("00000003.000-0123abcd.json", "00000000.000-ffffffff.json"):
        record = tmp_path / "_sparkinfer" / "chunks" / name
        record.write_text("{}")  # of a chunk, or of a run, that only the later one can know
        with pytest.raises(ResumeError, match="manifest-000002.json is damaged"):
            read_manifest(str(tmp_path))
        record.unlink()
    (tmp_path / "_sparkinfer" / "chunks" / "00000000.000-89abcdef.json").write_text("{}")
    assert read_manifest(str(tmp_path)) == MANIFEST  # of a run that it has replaced
    for file in (tmp_path / "_sparkinfer" / "chunks").iterdir():
        file.unlink()
    path.unlink()
    assert read_manifest(str(tmp_path)) is None


def test_a_folder_in_the_place_of_a_manifest_is_an_error(tmp_path: Path, path: Path) -> None:
    path.with_name("manifest-000002.json").mkdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(ResumeError, match="is damaged"):
        read_manifest(str(tmp_path))


def test_a_manifest_of_another_version_is_an_error(tmp_path: Path, path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(
        ResumeError, match="layout version 99 .written by sparkinfer 0., expected 3; resume"
    ):
        read_manifest(str(tmp_path))


def test_settings_that_differ_are_listed() -> None:
    before = {"task": "a", "max_length": None, "only_before": 1}
    with pytest.raises(ResumeError, match="different settings: task is new"):
        refuse_other_settings("out", {}, {"task": "a"})
    refuse_other_settings("out", before, {"task": "a", "max_length": None})
    with pytest.raises(ResumeError, match="max_length was None, is 128"):
        refuse_other_settings("out", before, {"task": "a", "max_length": 128})


def test_an_input_that_changed_is_refused_and_may_grow_only_if_asked_for() -> None:
    before, names = MANIFEST.input_files, {"a", "b"}
    more = (*before, InputFile("c", 1, "z"))
    changed = (InputFile("a", 11, "x2"), *before[1:])
    refuse_other_input("out", before, before, False, names)
    refuse_other_input("out", before, more, True, names)
    with pytest.raises(ResumeError, match="c is new"):
        refuse_other_input("out", before, more, False, names)
    for may_grow in (True, False):
        with pytest.raises(ResumeError, match="a changed .*11 bytes"):
            refuse_other_input("out", before, changed, may_grow, names)
        with pytest.raises(ResumeError, match=r"b is gone\. Undo"):
            refuse_other_input("out", before, before[:1], may_grow, names)


def test_files_that_are_done_may_be_gone_if_the_input_may_grow() -> None:
    before = MANIFEST.input_files
    refuse_other_input("out", before, before[1:], True, needed={"b"})
    with pytest.raises(ResumeError, match=r"a is gone\. All rows .* give --incremental to keep"):
        refuse_other_input("out", before, before[1:], False, needed={"b"})
    changed = (InputFile("b", 21, "y2"),)
    with pytest.raises(ResumeError, match=r"a is gone; b changed .* Undo"):
        refuse_other_input("out", before, changed, False, needed={"b"})
