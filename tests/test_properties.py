from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import pytest

from sparkinfer.spark.properties import SUBMIT_ARGS, as_properties, properties_file


def submit_arguments() -> list[str]:
    return shlex.split(os.environ[SUBMIT_ARGS])


@pytest.fixture
def defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    monkeypatch.delenv(SUBMIT_ARGS, raising=False)
    file = tmp_path / "spark-defaults.conf"
    file.write_text("spark.a 1\nspark.b 2\\")
    return file


def test_the_file_is_for_its_owner_only_and_gone_afterwards(defaults: Path) -> None:
    with properties_file({"spark.b": "3"}):
        option, name, *rest = submit_arguments()
        assert (option, rest) == ("--properties-file", ["pyspark-shell"])
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
        assert Path(name).read_text() == "spark.a 1\nspark.b 2\\\n\nspark.b=3\n"
    assert not Path(name).exists()
    assert SUBMIT_ARGS not in os.environ


def test_the_file_is_gone_after_a_failure(defaults: Path) -> None:
    seen = []

    def fail() -> None:
        with properties_file({}):
            seen.append(Path(submit_arguments()[1]))
            raise OSError("no java")

    with pytest.raises(OSError, match="no java"):
        fail()
    assert not seen[0].exists()


def test_arguments_of_the_environment_stay_and_their_file_replaces_the_defaults(
    defaults: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.conf"
    own.write_text("spark.own 1\n")
    given = f"--jars 'a b.jar' --properties-file {own} pyspark-shell"
    monkeypatch.setenv(SUBMIT_ARGS, given)
    with properties_file({"spark.b": "3"}):
        option, name, *rest = submit_arguments()
        assert (option, rest) == ("--properties-file", ["--jars", "a b.jar", "pyspark-shell"])
        assert Path(name).read_text() == "spark.own 1\n\n\nspark.b=3\n"
    assert os.environ[SUBMIT_ARGS] == given


def test_what_has_a_meaning_in_the_file_is_escaped() -> None:
    assert as_properties({"a:b": " #=\n\\é🙂"}) == (
        "a\\u003ab=\\u0020\\u0023\\u003d\\u000a\\u005c\\u00e9\\ud83d\\ude42\n"
    )
