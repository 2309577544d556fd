"""Texts of a column, and of several in a template."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.exceptions import ConfigError, InputError
from sparkinfer.models.text_sources import ColumnText, TemplateText, TextSource

BROKEN = pa.array([b"good", b"b\xffd", None], pa.binary()).view(pa.string())


def batch(**columns: Any) -> pa.RecordBatch:
    arrays = [one if isinstance(one, pa.Array) else pa.array(one) for one in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def test_columns_are_put_into_a_template() -> None:
    rows = batch(title=["A", "B"], n=[1, -2], flag=[True, False], body=["x", "{title}"])
    template = TemplateText("{title}: {body} ({n}, {flag}) {{kept}} {title}")
    assert template.columns == ("title", "body", "n", "flag")
    assert template.read(rows).values == [
        "A: x (1, true) {kept} A",
        "B: {title} (-2, false) {kept} B",
    ]


def test_a_null_in_any_column_leaves_the_row_without_a_text() -> None:
    rows = batch(a=["x", None, None], b=pa.array([1, 2, None], pa.int64()))
    texts = TemplateText("{a} {b}").read(rows)
    assert texts.values == ["x 1", None, None]
    assert texts.reasons == {1: "column 'a' is null", 2: "column 'a' is null"}


def test_a_null_may_be_something() -> None:
    rows = batch(a=["x", None], b=pa.array([None, None], pa.int64()))
    assert TemplateText("{a}|{b}", "").read(rows).values == ["x|", "|"]
    assert TemplateText("{a}|{b}", "n/a").read(rows).values == ["x|n/a", "n/a|n/a"]


@pytest.mark.parametrize("null", [None, "-"])
def test_bytes_that_are_no_text_cost_their_own_row(null: str | None) -> None:
    texts = TemplateText("{a} {b}", null).read(batch(a=["x", "y", "z"], b=BROKEN))
    assert texts.values == ["x good", None, null and "z -"]
    assert texts.reasons[1] == "column 'b': text is not valid UTF-8 (byte 0xff at 1)"
    assert texts.reasons.get(2) == (None if null else "column 'b' is null")
    texts = ColumnText("input_col", "b").read(batch(b=BROKEN))
    assert texts.values == ["good", None, None]
    assert texts.reasons == {1: "text is not valid UTF-8 (byte 0xff at 1)"}


def test_dictionaries_and_large_strings_are_texts() -> None:
    rows = batch(
        a=pa.array(["x", "y", "x"]).dictionary_encode(),
        b=pa.array(["1", None, "3"], pa.large_string()),
    )
    assert TemplateText("{a}{b}", "").read(rows).values == ["x1", "y", "x3"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no column", "it names no column; write its name in braces"),
        ("{{title}}", "it names no column"),
        ("{title", "braces that are text twice"),
        ("title}", "braces that are text twice"),
        ("{}", "expected only names of columns in braces"),
        ("{title:>10}", "expected only names of columns in braces"),
        ("{title!r}", "expected only names of columns in braces"),
    ],
)
def test_what_is_no_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        TextSource("input_template", TemplateText(template)).check()
    assert str(refused.value).startswith(f"input_template={template!r}: ")


def test_columns_must_be_there_and_written_in_one_way() -> None:
    source = TextSource("input_template", TemplateText("{title} {size}"))
    with pytest.raises(InputError, match=r"input_template='size': no such column"):
        source.check_names(["title", "body"])
    source.check_names(["title", "size"])
    source.made_of.check_types(pa.schema([("title", pa.string()), ("size", pa.uint16())]))
    for kind in (pa.float64(), pa.date32(), pa.list_(pa.string()), pa.binary()):
        schema = pa.schema([("title", pa.string()), ("size", kind)])
        with pytest.raises(InputError, match="expected string, an integer or a boolean"):
            source.made_of.check_types(schema)


def test_the_longest_text_is_bounded() -> None:
    lengths = {"a": 10, "b": None, "c": 2}
    assert TemplateText("é {a}{c}").longest(lengths.get) == 3 + 12
    assert TemplateText("{a}{c}", "null").longest(lengths.get) == 10 + 4
    assert TemplateText("{a}{b}").longest(lengths.get) is None
    assert TemplateText("{a}{c}").read(batch(a=["ä" * 5], c=["xy"])).values == ["ä" * 5 + "xy"]
