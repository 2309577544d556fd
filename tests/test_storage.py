from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from sparkinfer import storage
from sparkinfer.models.fetching import local_path
from sparkinfer.storage import file_system, mounted

MOUNTED = [
    ("dbfs:/x", "/dbfs/x"),
    ("dbfs:///x/y", "/dbfs/x/y"),
    ("/dbfs/x", "/dbfs/x"),
    ("dbfs:/Volumes/a/b/c", "/Volumes/a/b/c"),
    ("dbfs:///Volumes/a/b/c", "/Volumes/a/b/c"),
    ("/Volumes/a/b/c", "/Volumes/a/b/c"),
    ("dbfs:/VolumesOfMine/x", "/dbfs/VolumesOfMine/x"),
    ("/dbfs/VolumesOfMine", "/dbfs/VolumesOfMine"),
]


@pytest.mark.parametrize(("path", "place"), MOUNTED)
def test_a_path_of_databricks_is_where_it_is_mounted_for_data_and_models(
    path: str, place: str
) -> None:
    assert mounted(path) == place
    assert file_system(path)[1] == place
    assert str(local_path(path)) == place


@pytest.mark.parametrize("path", ["s3://bucket/dbfs:/x", "relative/dbfs", "abfss://c@a/Volumes/x"])
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert mounted(path) == path


def test_a_local_name_may_hold_what_chains_file_systems(tmp_path: Path) -> None:
    folder = str(tmp_path / "a::b")
    storage.make_folder(folder)
    storage.write_text(f"{folder}/c", "d")
    assert (tmp_path / "a::b" / "c").read_text() == "d"
    assert storage.names_in(folder) == ["c"]


def test_a_file_that_goes_while_a_folder_is_looked_at_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        name = "gone"

        def is_file(self) -> bool:
            return True

        def stat(self) -> None:
            raise FileNotFoundError

    (tmp_path / "there").write_text("x")
    scandir = os.scandir

    def with_one_that_goes(path: str) -> Any:
        with scandir(path) as entries:
            return contextlib.nullcontext([Gone(), *entries])

    monkeypatch.setattr(os, "scandir", with_one_that_goes)
    assert storage.sizes_in(str(tmp_path)) == {"there": 1}
