from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from sparkinfer.exceptions import ResumeError
from sparkinfer.jobs.manifest import (
    ChunkRecord,
    Manifest,
    ManifestFolder,
    refuse_other_input,
    refuse_other_settings,
)
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.snapshot import InputFile
from sparkinfer.rows.reading import Piece

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
)
RECORD = ChunkRecord(
    1,
    5,
    1,
    {"the text is null": 1},
    0,
    50,
    2.5,
    "cpu",
    {"part-1.parquet": 7},
    3,
    "2026-01-01T00:00:00+00:00",
    {"m": {"n": 1}},
)
SIZES = {"part-1.parquet": 7, "part-2.parquet": 8}


@pytest.fixture
def folder(tmp_path: Path) -> ManifestFolder:
    folder = ManifestFolder(str(tmp_path))
    folder.write(MANIFEST)
    return folder


def test_a_manifest_comes_back_as_it_was_written(folder: ManifestFolder) -> None:
    assert folder.read() == MANIFEST
    assert MANIFEST.rows == 30


def test_a_piece_within_row_groups_comes_back_and_others_are_stored_short(
    folder: ManifestFolder, tmp_path: Path
) -> None:
    pieces = (Piece("a", 0, 2, 20), Piece("a", 2, 3, 7, before=1), Piece("a", 5, 1, 2, after=9))
    manifest = replace(MANIFEST, chunks=(Chunk(0, pieces),))
    folder.write(manifest)
    assert folder.read() == manifest
    stored = json.loads((tmp_path / "_sparkinfer" / "manifest.json").read_text())
    assert stored["chunks"] == [[[0, 0, 2, 20], [0, 2, 3, 7, 1, 0], [0, 5, 1, 2, 0, 9]]]


def test_there_is_no_manifest_in_an_empty_folder(tmp_path: Path) -> None:
    folder = ManifestFolder(str(tmp_path / "absent"))
    assert folder.read() is None
    assert list(folder.records(lambda: SIZES)) == []


def test_records_come_back_by_the_number_of_their_chunk(folder: ManifestFolder) -> None:
    other = replace(RECORD, number=0, metrics={})
    folder.add(RECORD)
    folder.add(other)
    assert list(folder.records(lambda: SIZES)) == [other, RECORD]


@pytest.mark.parametrize("kept", [0, 1, 40])
def test_a_truncated_record_counts_as_absent_and_is_told(
    folder: ManifestFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    folder.add(RECORD)
    folder.add(replace(RECORD, number=0))
    path = tmp_path / "_sparkinfer" / "chunks" / "00000001.json"
    path.write_text(path.read_text()[:kept])
    with caplog.at_level(logging.WARNING):
        assert [record.number for record in folder.records(lambda: SIZES)] == [0]
    assert str(path) in caplog.text
    assert "scored again" in caplog.text


def test_a_record_under_another_chunks_name_counts_as_absent(
    folder: ManifestFolder, tmp_path: Path
) -> None:
    folder.add(RECORD)
    records = tmp_path / "_sparkinfer" / "chunks"
    (records / "00000001.json").rename(records / "00000000.json")
    assert list(folder.records(lambda: SIZES)) == []


def test_a_truncated_manifest_is_an_error_that_says_what_to_do(
    folder: ManifestFolder, tmp_path: Path
) -> None:
    path = tmp_path / "_sparkinfer" / "manifest.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ResumeError, match=f"{path} is damaged .*--overwrite"):
        folder.read()


def test_a_manifest_of_another_version_is_an_error(folder: ManifestFolder, tmp_path: Path) -> None:
    path = tmp_path / "_sparkinfer" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(ResumeError, match="schema version 99, expected 2.*sparkinfer 0"):
        folder.read()


@pytest.mark.parametrize("sizes", [{}, {"part-1.parquet": 6}])
def test_a_record_whose_files_are_gone_or_changed_counts_as_absent(
    folder: ManifestFolder, caplog: pytest.LogCaptureFixture, sizes: dict[str, int]
) -> None:
    folder.add(RECORD)
    with caplog.at_level(logging.WARNING):
        assert list(folder.records(lambda: sizes)) == []
    assert "part-1.parquet is missing or has changed; chunk 1 is scored again" in caplog.text


def test_settings_that_differ_are_listed() -> None:
    before = {"task": "a", "max_length": None, "only_before": 1}
    refuse_other_settings("out", before, {"task": "a", "max_length": None})
    with pytest.raises(ResumeError, match="max_length was None, is 128"):
        refuse_other_settings("out", before, {"task": "a", "max_length": 128})


def test_an_input_that_changed_is_refused_and_may_grow_only_if_asked_for() -> None:
    before = MANIFEST.input_files
    more = (*before, InputFile("c", 1, "z"))
    changed = (InputFile("a", 11, "x2"), *before[1:])
    refuse_other_input("out", before, before, may_grow=False)
    refuse_other_input("out", before, more, may_grow=True)
    with pytest.raises(ResumeError, match="c is new"):
        refuse_other_input("out", before, more, may_grow=False)
    for may_grow in (True, False):
        with pytest.raises(ResumeError, match="a changed .*11 bytes"):
            refuse_other_input("out", before, changed, may_grow)
        with pytest.raises(ResumeError, match="b is gone"):
            refuse_other_input("out", before, before[:1], may_grow)
