import gc
import importlib
import sys
import zipfile
import zipimport
from pathlib import Path

import pytest

from sparkinfer.workers.worker_reuse import settle, unsettle


def test_the_collector_leaves_out_what_is_loaded_until_it_may_go() -> None:
    try:
        settle()
        kept = gc.get_freeze_count()
        assert kept > 10_000
    finally:
        unsettle()
    assert gc.get_freeze_count() == 0


def test_zip_files_are_not_read_again_and_can_still_be_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "pyspark.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped_package/__init__.py", "")
        file.writestr("zipped_package/first.py", "NAME = 'first'")
        file.writestr("zipped_package/second.py", "NAME = 'second'")
    monkeypatch.syspath_prepend(archive)
    try:
        assert importlib.import_module("zipped_package.first").NAME == "first"
        settle()
        finders = sys.path_importer_cache.values()
        assert not [one for one in finders if isinstance(one, zipimport.zipimporter)]
        importlib.invalidate_caches()
        assert importlib.import_module("zipped_package.second").NAME == "second"
    finally:
        unsettle()
        for name in [name for name in sys.modules if name.startswith("zipped_package")]:
            del sys.modules[name]
