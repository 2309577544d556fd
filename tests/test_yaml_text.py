from __future__ import annotations

import pytest

from sparkinfer.yaml_text import YamlTextError, parse_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2024-13-45\n", "line 2, column 4: what is written as a value of the type"),
        ("a: !!timestamp x\n", "line 1, column 4"),
        ("a: !!bool x\n", "line 1, column 4"),
        (f"a: {'9' * 5000}\n", "line 1, column 4"),
        ("[" * 5000, "it is nested too deeply"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key was given before, in line 1"),
        ("g:\n  a: 1\n  'a': 2\n", "line 3, column 3: the key was given before, in line 2"),
        ("a: 1\nb: \x07\n", "line 2, column 4: a control character"),
        ("a: [", "line 1, column 5"),
        ("a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(YamlTextError) as raised:
        parse_yaml(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        *("password: *hunter2", "password: hunter2: x", "p: !hunter2 x", "p: 'hunter2"),
        *("p: @hunter2", "p: %hunter2", "hunter2\np: x", 'p: "\\hunter2"'),
        "a: &hunter2 1\nb: &hunter2 2\nc: [",
    ],
)
def test_the_content_of_a_broken_line_is_not_repeated(text: str) -> None:
    with pytest.raises(YamlTextError) as raised:
        parse_yaml(text)
    assert "unter2" not in str(raised.value)
    assert "line " in str(raised.value)


def test_a_merged_mapping_may_be_overridden() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n"
    assert parse_yaml(text)["c"] == {"x": 3, "y": 4}
