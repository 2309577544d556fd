"""A user's function over texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.preprocess import Failed, Preprocess
from sparkinfer.models.text_sources import ColumnText, TextSource
from sparkinfer.option_groups import PreprocessConfig

HERE = "tests.made_up_texts"


def change(name: str, texts: list[str], batch_format: str = "pandas") -> list[Any]:
    found = Preprocess(f"{HERE}:{name}", batch_format).change(texts)
    return [one.reason if isinstance(one, Failed) else one for one in found]


def test_a_series_and_an_array_of_arrow_are_given() -> None:
    assert change("shouted", ["a", "größe", ""]) == ["A", "GRÖSSE", ""]
    assert change("reversed_in_arrow", ["abc", "é1"], "pyarrow") == ["cba", "1é"]
    assert change("shouted", []) == []


def test_a_failure_is_of_its_text_alone() -> None:
    texts = [f"text {i}" for i in range(37)]
    texts[5] = texts[6] = texts[30] = "bad"
    failed = "preprocess: ValueError: bad words"
    assert change("shouted", texts) == [failed if text == "bad" else text.upper() for text in texts]


def test_another_number_of_texts_is_an_error_of_each() -> None:
    reason = "preprocess: ValueError: it returned 0 texts for 1"
    assert change("one_too_few", ["a", "b", "c"]) == [reason] * 3


def test_what_is_no_text_is_an_error_of_its_row() -> None:
    found = change("none_for_short", ["long enough", "no"])
    assert found == ["long enough", "preprocess: it returned NoneType, expected a string"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("one_text", "str"), ("distinct", "set"), ("counted", "dict"), ("framed", "DataFrame")],
)
def test_what_does_not_tell_whose_a_text_is_is_refused(name: str, kind: str) -> None:
    reason = f"preprocess: TypeError: it returned a {kind}, expected a Series or a list"
    assert change(name, ["a", "b", "c"]) == [reason] * 3


def test_a_series_is_taken_in_the_order_of_the_texts() -> None:
    assert change("in_parts", ["a", "plot", "b", "film"]) == ["a", "PLOT", "b", "FILM"]
    assert change("of_fewer", ["b", "a"]) == ["b", "a"]
    assert change("shouting", ["b", "a"]) == ["B", "A"]


def test_a_text_does_not_get_what_another_has_twice() -> None:
    assert change("with_one_twice", ["a", "b", "c"]) == ["A", "B", "C"]


def test_a_function_may_not_end_the_process() -> None:
    assert change("leaving", ["bad", "good"]) == [
        "preprocess: SystemExit: no more ?",
        "preprocess: SystemExit: 0",
    ]


def test_half_a_character_is_an_error_of_its_row() -> None:
    [found] = change("halved", ["a"])
    assert found.startswith("preprocess: it returned half a character")


def test_rows_without_a_text_are_not_given() -> None:
    source = TextSource("input_col", ColumnText("input_col", "t"), Preprocess(f"{HERE}:shouted"))
    rows = pa.RecordBatch.from_arrays([pa.array([None, "a", "bad", "b"])], names=["t"])
    texts = source.read(rows)
    assert texts.values == [None, "A", None, "B"]
    assert texts.reasons == {2: "preprocess: ValueError: bad words"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shouted", "such as 'my_texts:without_markup'"),
        (":shouted", "such as 'my_texts:without_markup'"),
        ("no_such_module:f", "ModuleNotFoundError: .* on every node, or correct the name"),
        (f"{HERE}:nothing", "AttributeError: .* has no attribute 'nothing'"),
        (f"{HERE}:NOT_A_FUNCTION", "it is str, name a function"),
        (f"{HERE}:of_two", "it cannot be called with texts alone"),
        (f"{HERE}:Shouting", "it cannot be called with texts alone"),
        ("tests.made_up_exit:f", "SystemExit: not here"),
    ],
)
def test_what_is_no_function_is_refused_in_a_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        Preprocess(name).load()
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"preprocess={name!r}: expected an importable")


def test_its_identity_is_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def identity(body: str) -> str:
        import linecache

        (tmp_path / "of_users.py").write_text(f"def f(texts):\n    return {body}\n")
        sys.modules.pop("of_users", None)
        linecache.clearcache()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return Preprocess("of_users:f").identity()

    first = identity("texts")
    assert first.startswith("of_users:f ")
    assert identity("texts[:]  # changed") != first
    assert identity("texts") == first


def test_the_configuration_of_one() -> None:
    assert Preprocess.of(PreprocessConfig()) is None
    config = PreprocessConfig(function="a:b", batch_format="pyarrow", version="2")
    assert Preprocess.of(config) == Preprocess("a:b", "pyarrow", "2")
