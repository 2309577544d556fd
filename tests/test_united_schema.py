"""Files that differ are read alike, without loss, or refused with the names of both."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.exceptions import InputError
from sparkinfer.files.conform import conform, cut_nanoseconds
from sparkinfer.files.schema import UnitedSchema, unite
from sparkinfer.files.types import NotCarriedError, carried_type, common_type


def united(*schemas: dict[str, pa.DataType], bounds: Any = (0, 0)) -> UnitedSchema:
    names = [f"{index}.parquet" for index in range(len(schemas))]
    return unite(names, [pa.schema(list(one.items())) for one in schemas], lambda *_: bounds)


DAY = datetime.date(2024, 1, 1)
US, US_UTC = pa.timestamp("us"), pa.timestamp("us", "UTC")
AB = pa.struct([("a", pa.int32()), ("b", pa.string())])
BA = pa.struct([("B", pa.large_string()), ("a", pa.int64())])


@pytest.mark.parametrize(
    ("kind", "carried"),
    [
        (pa.uint8(), pa.int16()),
        (pa.uint32(), pa.int64()),
        (pa.uint64(), pa.decimal128(20, 0)),
        (pa.float16(), pa.float32()),
        (pa.large_string(), pa.string()),
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (pa.binary(4), pa.binary()),
        (pa.date64(), pa.date32()),
        (pa.timestamp("ns"), US),
        (pa.timestamp("s", "Europe/Paris"), US_UTC),
        (pa.decimal256(30, 2), pa.decimal128(30, 2)),
        (pa.list_(pa.uint8(), 2), pa.list_(pa.int16())),
        (pa.large_list(pa.null()), pa.list_(pa.null())),
        (pa.map_(pa.large_string(), pa.uint16()), pa.map_(pa.string(), pa.int32())),
        (BA, pa.struct([("B", pa.string()), ("a", pa.int64())])),
    ],
)
def test_each_type_is_carried_as_one_that_spark_has(
    kind: pa.DataType, carried: pa.DataType
) -> None:
    assert carried_type(kind) == carried


@pytest.mark.parametrize(
    "kind",
    [
        pa.time64("us"),
        pa.duration("s"),
        pa.month_day_nano_interval(),
        pa.decimal256(39, 0),
        pa.decimal128(5, -2),
        pa.struct([]),
        pa.struct([("a", pa.int8()), ("A", pa.int8())]),
        pa.list_(pa.time32("s")),
    ],
)
def test_what_spark_has_no_type_for_is_not_carried(kind: pa.DataType) -> None:
    with pytest.raises(NotCarriedError, match="has type"):
        carried_type(kind)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.int16(), pa.float32(), pa.float32()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.int64(), pa.decimal128(10, 2), pa.decimal128(21, 2)),
        (pa.decimal128(10, 2), pa.decimal128(10, 5), pa.decimal128(13, 5)),
        (pa.null(), AB, AB),
        (pa.list_(pa.null()), pa.list_(pa.int8()), pa.list_(pa.int8())),
        (
            pa.map_(pa.string(), pa.int8()),
            pa.map_(pa.string(), pa.int32()),
            pa.map_(pa.string(), pa.int32()),
        ),
        (AB, carried_type(BA), pa.struct([("a", pa.int64()), ("b", pa.string())])),
        (
            AB,
            pa.struct([("c", pa.bool_())]),
            pa.struct([("a", pa.int32()), ("b", pa.string()), ("c", pa.bool_())]),
        ),
    ],
)
def test_types_that_differ_have_one_in_common(
    one: pa.DataType, other: pa.DataType, common: pa.DataType
) -> None:
    assert common_type(one, other) == common
    assert united({"x": one}, {"x": other}).schema.field("x").type == common
    if not pa.types.is_struct(common):
        assert common_type(other, one) == common


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.string(), pa.int8()),
        (pa.string(), pa.binary()),
        (pa.bool_(), pa.int8()),
        (US, US_UTC),
        (US, pa.date32()),
        (pa.decimal128(38, 0), pa.decimal128(38, 10)),
        (pa.decimal128(5, 2), pa.float64()),
        (pa.list_(pa.int64()), pa.list_(pa.float64())),
        (AB, pa.struct([("a", pa.string())])),
    ],
)
def test_types_without_one_in_common_are_refused_with_both_files(
    one: pa.DataType, other: pa.DataType
) -> None:
    found = united({"id": pa.int64(), "x": one}, {"id": pa.int64(), "x": other})
    assert found.schema.names == ["id"]
    assert found.refused == {"x": f"has type {one} in '0.parquet' and {other} in '1.parquet'"}


@pytest.mark.parametrize("bounds", [(-(2**53), 2**53), (0, 2**53 + 1), None])
def test_whole_numbers_become_fractions_only_if_all_are_exact(bounds: Any) -> None:
    found = united({"x": pa.int64()}, {"x": pa.float64()}, bounds=bounds)
    if bounds == (-(2**53), 2**53):
        assert found.schema.field("x").type == pa.float64()
    else:
        assert "cannot hold its whole numbers beyond 2^53" in found.refused["x"]


def test_columns_are_matched_by_name_in_any_case_and_order() -> None:
    found = united(
        {"id": pa.int64(), "text": pa.string()},
        {"more": pa.null(), "TEXT": pa.string(), "id": pa.int32()},
        {"last": pa.bool_()},
    )
    assert found.columns == ("id", "text", "more", "last")
    assert [str(kind) for kind in found.schema.types] == ["int64", "string", "string", "bool"]


def test_two_columns_of_one_name_are_refused() -> None:
    twice = pa.schema([("x", pa.int8()), ("text", pa.string()), ("x", pa.int8())])
    cases = pa.schema([("text", pa.string()), ("Y", pa.int8()), ("y", pa.int8())])
    found = unite(["a", "b"], [twice, cases], lambda *_: None)
    assert found.schema.names == ["text"]
    assert found.refused["x"].startswith("is twice in 'a'")
    assert found.refused["Y"].startswith("is twice in 'b' ('Y' and 'y')")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "20"], pa.int32()),
        (["-3", "3000000000"], pa.int64()),
        (["01", "2"], pa.string()),
        (["2024-01-01", "__HIVE_DEFAULT_PARTITION__"], pa.date32()),
        (["2024-01-01", "2024-02-30"], pa.string()),
        (["a%20b%3Dc"], pa.string()),
        (["1.0"], pa.string()),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string()),
    ],
)
def test_columns_of_folders_have_the_narrowest_type_that_loses_nothing(
    values: list[str], kind: pa.DataType
) -> None:
    names = [f"x={value}/a.parquet" for value in values]
    found = unite(names, [pa.schema([("X", pa.bool_())])] * len(names), lambda *_: None)
    assert found.schema == pa.schema([("x", kind)])


def test_files_with_and_without_folders_of_values_are_refused() -> None:
    with pytest.raises(InputError, match="'a' and 'day=1/b' have different key=value folders"):
        unite(["a", "day=1/b"], [pa.schema([])] * 2, lambda *_: None)


@pytest.mark.parametrize("name", ["k=1/k=2/a", "k=1/j=0/K=2/a"])
def test_a_folder_of_values_below_one_of_the_same_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name!r} has two key=value folders of one name"):
        unite([name], [pa.schema([])], lambda *_: None)


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        (pa.array([1, None], pa.int8()), pa.float64(), [1.0, None]),
        (pa.array([2**64 - 1, None], pa.uint64()), pa.decimal128(20, 0), [2**64 - 1, None]),
        (pa.nulls(2), AB, [None, None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string(), ["a", None, "a"]),
        (pa.array([b"ab", None], pa.binary(2)), pa.binary(), [b"ab", None]),
        (
            pa.array([[1, 2], None, [3, None]], pa.list_(pa.int8(), 2)),
            pa.list_(pa.int64()),
            [[1, 2], None, [3, None]],
        ),
        (
            pa.array([[], None, [5]], pa.large_list(pa.int8())),
            pa.list_(pa.int64()),
            [[], None, [5]],
        ),
        (
            pa.array([{"B": "x", "a": 1}, None, {"B": None, "a": 2}], BA),
            pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.int8())]),
            [{"a": 1, "b": "x", "c": None}, None, {"a": 2, "b": None, "c": None}],
        ),
        (
            pa.array([[("k", 1)], None, [], [("x", None)]], pa.map_(pa.string(), pa.int8())),
            pa.map_(pa.string(), pa.int64()),
            [[("k", 1)], None, [], [("x", None)]],
        ),
        (
            pa.array([[{"a": 1, "b": "x"}], None], pa.list_(AB)),
            pa.list_(pa.struct([("b", pa.string()), ("a", pa.int64())])),
            [[{"b": "x", "a": 1}], None],
        ),
        (pa.array([DAY, None], pa.date64()), pa.date32(), [DAY, None]),
    ],
)
def test_columns_take_the_common_type_with_their_values(
    column: pa.Array, kind: pa.DataType, expected: list[Any]
) -> None:
    whole = conform(column, kind)
    assert (whole.type, whole.to_pylist()) == (kind, expected)
    whole.validate(full=True)
    padded = pa.concat_arrays([column, column])[1:-1]
    assert conform(padded, kind).to_pylist() == [*expected, *expected][1:-1]


def test_timestamps_lose_the_digits_after_the_microseconds_and_no_others() -> None:
    column = pa.array([1_500, -1, -1_500, 2_000, None], pa.timestamp("ns", "Asia/Tokyo"))
    assert cut_nanoseconds(column) == 3
    found = conform(column, US_UTC)
    assert found.cast(pa.int64()).to_pylist() == [1, -1, -2, 2, None]
    assert cut_nanoseconds(found) == 0


def test_a_value_that_the_type_cannot_hold_is_an_error() -> None:
    with pytest.raises(pa.ArrowInvalid):
        conform(pa.array([2**53 + 1]), pa.float64())
