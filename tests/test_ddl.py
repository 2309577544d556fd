import pyarrow as pa
import pytest

from sparkinfer.exceptions import ConfigError
from sparkinfer.models.ddl import columns_as_ddl, parse_columns


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a float", [("a", pa.float32())]),
        (" a  DOUBLE ,b bigint", [("a", pa.float64()), ("b", pa.int64())]),
        ("a: int, b integer, c long", [("a", pa.int32()), ("b", pa.int32()), ("c", pa.int64())]),
        ("b array<string>, c boolean", [("b", pa.list_(pa.string())), ("c", pa.bool_())]),
        (
            "x array<struct<word: string, `a ``b`: array<array<float>>>>",
            [
                (
                    "x",
                    pa.list_(
                        pa.struct(
                            [("word", pa.string()), ("a `b", pa.list_(pa.list_(pa.float32())))]
                        )
                    ),
                )
            ],
        ),
        ("m map<string, decimal(10, 2)>, d date, b binary, t timestamp, n timestamp_ntz", [
            ("m", pa.map_(pa.string(), pa.decimal128(10, 2))),
            ("d", pa.date32()),
            ("b", pa.binary()),
            ("t", pa.timestamp("us", "UTC")),
            ("n", pa.timestamp("us")),
        ]),
        ("s struct<a int, b struct<c:string>>", [
            ("s", pa.struct([("a", pa.int32()), ("b", pa.struct([("c", pa.string())]))])),
        ]),
    ],
)  # fmt: skip
def test_a_ddl_and_its_columns(text: str, columns: list[tuple[str, pa.DataType]]) -> None:
    found = parse_columns(text, "fn.schema")
    assert found == pa.schema(columns)
    assert parse_columns(columns_as_ddl(found), "fn.schema") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at its end: expected columns as in"),
        ("a", "at its end"),
        ("a text", "at 'text'"),
        ("a int,", "at its end"),
        ("a int b int", "at 'b'"),
        ("a array<int", "at its end"),
        ("a array int", "at 'int'"),
        ("a struct<>", "at '>'"),
        ("a map<string, int>", "at 'map'"),
        ("a int, A string", "two fields are named 'a'"),
        ("a struct<b int, B int>", "two fields are named 'b'"),
        ("a int; drop", "at '; drop'"),
    ],
)
def test_what_is_no_ddl_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_columns(text, "task.schema", of_results=True)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a decimal(39, 2)", "fn.schema='a decimal(39, 2)' at '39': expected columns as in"),
        ("a decimal(5, 6)", "at '6'"),
        ("a decimal", "at its end"),
        ("a map<string>", "at '>'"),
    ],
)
def test_wrong_numbers_and_parts_of_types_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_columns(text, "fn.schema")
    assert message in str(refused.value)
