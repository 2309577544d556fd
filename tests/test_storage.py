from __future__ import annotations

import pytest

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
