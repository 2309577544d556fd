"""JSON: rows as they were written, or an error that names file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.exceptions import InputError
from sparkinfer.files.json_rows import JsonFile
from sparkinfer.files.json_shapes import Shape, merged, to_array


def rows_in(path: Path, content: str | bytes) -> list[dict[str, Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    file = JsonFile(str(path))
    schema = schema_of(file.shape())
    return [row for batch in file.batches(schema) for row in batch.to_pylist()]


def schema_of(shape: Shape) -> pa.Schema:
    return pa.schema([pa.field(key, one.type()) for key, one in shape.fields.items()])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


@pytest.mark.parametrize(
    "content",
    [
        '{"id": 1, "text": "a"}\n{"id": 2, "text": "b\\n", "more": true}\n',
        '\n{"id": 1, "text": "a"}\r\n\n{"more": true, "id": 2, "text": "b\\n"}',
        '\ufeff{"id": 1, "text": "a"}\n{"id": 2, "text": "b\\n", "more": true}',
        '[{"id": 1, "text": "a"},\n {"id": 2, "text": "b\\n", "more": true}]\n',
        '[\n\n{"id": 1,\n"text": "a"}, {"id": 2, "text": "b\\n", "more": true}\n]',
    ],
)
def test_lines_and_arrays_are_read(path: Path, content: str) -> None:
    assert rows_in(path, content) == [
        {"id": 1, "text": "a", "more": None},
        {"id": 2, "text": "b\n", "more": True},
    ]


def test_an_empty_object_is_a_row_and_an_empty_line_or_array_is_none(path: Path) -> None:
    assert rows_in(path, '{"a": 1}\n{}\n\n') == [{"a": 1}, {"a": None}]
    assert rows_in(path, "[ ]") == rows_in(path, "\n") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a":\n', "line 2: it is no JSON object"),
        ('{"a": 1}\n\n{"a', "line 3: it is no JSON object"),
        ('{\n "a": 1\n}\n', "line 1: it is no JSON object.*one object per line, or one array"),
        ('{"a": 1}\n[1]\n', "line 2: it is list"),
        ('{"a": 1, "a": 2}\n', "line 1: .*key 'a' appears twice"),
        ('[{"a": 1},\n 5]', "line 2: it is int '5', no JSON object"),
        ('[{"a": 1}\n {"a": 2}]', "line 2: an array's element is followed by neither"),
        ('[{"a": 1}', "line 1: an array's element is followed by neither"),
        ('[{"a": 1}]\n{"a": 2}', "line 1: something follows the end of the array"),
        ('{"a": 1, "\\ud83d": 1, "\\ud83e": 2}\n', "line 1: .*key '\ufffd' appears twice"),
        ('{"a": ' + "[" * 100_000, "line 1: it cannot be read"),
        ('{"a": ' + "[" * 1500 + "]" * 1500 + "}", "line 1: it cannot be read"),
        ('[{"a": ' + "[" * 1500 + "]" * 1500 + "}]", "line 1: it cannot be read"),
        ('{"a": ' + "1" * 5000 + "}", "line 1: it cannot be read"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', "line 2, is not valid UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=f"a.jsonl', {message}"):
        rows_in(path, content)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, None, -5], pa.int64(), [1, None, -5]),
        ([1, 2.5, None], pa.float64(), [1.0, 2.5, None]),
        ([2**53 + 1, 0.5], pa.string(), ["9007199254740993", "0.5"]),
        ([2**63, 1], pa.string(), ["9223372036854775808", "1"]),
        (["a", 5, True, None], pa.string(), ["a", "5", "true", None]),
        ([True, 1], pa.string(), ["true", "1"]),
        (["2024-01-01", "2024-01-02 10:00"], pa.string(), ["2024-01-01", "2024-01-02 10:00"]),
        ([[1], [], [2.5, None]], pa.list_(pa.float64()), [[1.0], [], [2.5, None]]),
        ([[1], {"a": 2}], pa.string(), ["[1]", '{"a": 2}']),
        ([{}, {}], pa.string(), ["{}", "{}"]),
        ([{"a": 1, "A": 2}], pa.string(), ['{"a": 1, "A": 2}']),
        ([None, None], pa.null(), [None, None]),
        (
            [{"x": 1}, {"y": ["é"]}, None],
            pa.struct([("x", pa.int64()), ("y", pa.list_(pa.string()))]),
            [{"x": 1, "y": None}, {"x": None, "y": ["é"]}, None],
        ),
    ],
)
def test_a_column_has_the_type_that_loses_nothing(
    values: list[Any], kind: pa.DataType, expected: list[Any]
) -> None:
    shape = Shape()
    for value in values:
        shape.add(value)
    assert shape.type() == kind
    assert to_array(values, kind).to_pylist() == expected


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(alphabet='aé😀"\\', max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "B"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(JSON_VALUES, max_size=6), st.integers(0, 6))
def test_any_values_are_held_by_their_type_in_whatever_files_they_are(
    values: list[Any], cut: int
) -> None:
    shapes = []
    for part in (values[:cut], values[cut:]):
        shapes.append(Shape())
        for value in part:
            shapes[-1].add(value)
    kind = merged(shapes).type()
    found = to_array(values, kind)
    if pa.types.is_string(kind):
        texts = [
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for value in values
            if value is not None
        ]
        assert [text for text in found.to_pylist() if text is not None] == texts
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        assert found.to_pylist() == values
    assert found.null_count == sum(value is None for value in values) or pa.types.is_null(kind)


def test_a_number_beyond_float64_is_kept_as_it_is_written(path: Path) -> None:
    path.write_text('{"a": 1e400, "b": [-1.5E999, 1.5]}\n{"a": 2.5}\n')
    file = JsonFile(str(path))
    rows = [row for batch in file.batches(schema_of(file.shape())) for row in batch.to_pylist()]
    assert rows == [{"a": "1e400", "b": ["-1.5E999", "1.5"]}, {"a": "2.5", "b": None}]


@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"b":', "}")])
def test_what_is_nested_very_deeply_is_kept_as_text(path: Path, opens: str, closes: str) -> None:
    deep = opens * 200 + "1" + closes * 200
    path.write_text(f'{{"a": {deep}}}\n{{"a": null}}\n')
    file = JsonFile(str(path))
    schema = schema_of(file.shape())
    pq.write_table(pa.Table.from_batches(file.batches(schema), schema), path.parent / "a.parquet")
    found = value = pq.read_table(path.parent / "a.parquet")["a"].to_pylist()[0]
    while not isinstance(value, str):
        value = value["b"] if isinstance(value, dict) else value[0]
    assert json.loads(value) == json.loads(deep[len(opens) * 30 : len(deep) - 30])
    assert found != value


def test_half_a_character_is_replaced_and_counted(path: Path) -> None:
    path.write_text('{"a": "x\\ud83d", "b": ["\\ude00"]}\n{"a": "\\ud83d\\ude00", "b": []}\n')
    file = JsonFile(str(path))
    rows = [row for batch in file.batches(schema_of(file.shape())) for row in batch.to_pylist()]
    assert [row["a"] for row in rows] == ["x\ufffd", "😀"]
    assert rows[0]["b"] == ["\ufffd"]
    assert file.halves == 4  # the shape is read of them, too
