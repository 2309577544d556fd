"""Digests of files, and which of them are kept."""

import hashlib
import os
from pathlib import Path

import pytest

from sparkinfer.models.digests import FileDigests


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "weights"
    made.write_bytes(b"abc" * 10**6)
    return made


def test_a_file_of_a_cache_is_read_once(file: Path, tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "kept")
    assert digests.known(file) is None
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digests.read(file) == expected
    assert FileDigests(tmp_path / "kept").known(file) == expected


def test_a_file_that_may_change_is_read_each_time(file: Path, tmp_path: Path) -> None:
    FileDigests(tmp_path / "kept").read(file)
    FileDigests().read(file)
    assert FileDigests().known(file) is None


def test_one_that_was_written_again_is_read_again_though_its_size_and_time_are_the_same(
    file: Path, tmp_path: Path
) -> None:
    digests = FileDigests(tmp_path / "kept")
    before, old = file.stat(), digests.read(file)
    file.write_bytes(b"abd" * 10**6)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.known(file) is None
    assert digests.read(file) != old


def test_a_link_is_known_by_what_it_leads_to(file: Path, tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "kept")
    link = tmp_path / "link"
    link.symlink_to(file)
    assert digests.read(link) == digests.known(file)
    other = tmp_path / "other"
    other.write_bytes(b"xyz")
    link.unlink()
    link.symlink_to(other)
    assert digests.known(link) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"state": 1}'])
def test_a_damaged_note_is_as_none(file: Path, tmp_path: Path, content: str) -> None:
    digests = FileDigests(tmp_path / "kept")
    digests.read(file)
    [note] = (tmp_path / "kept").iterdir()
    note.write_text(content)
    assert digests.known(file) is None


def test_a_folder_that_cannot_be_written_costs_only_another_reading(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("a file in its place")
    digests = FileDigests(tmp_path / "kept")
    digests.read(file)
    assert digests.known(file) is None
