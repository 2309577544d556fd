"""The columns of what functions return: no value is changed on the way into them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparkinfer.functions.columns import fit, infer_schema
from sparkinfer.functions.formats import UnfitBatchError, as_rows, in_format


def fitted(values: Any, kind: pa.DataType) -> list[Any]:
    found: list[Any] = fit(as_rows({"a": values}), pa.schema([("a", kind)])).column(0).to_pylist()
    return found


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1e300], pa.float32()),
        ([[1e300]], pa.list_(pa.float32())),
        ([{"x": 1e300}], pa.struct([("x", pa.float32())])),
        ([1.156], pa.decimal128(10, 2)),
        ([dt.datetime(2024, 2, 29, 12)], pa.date32()),
    ],
)
def test_a_value_that_would_change_is_refused(values: Any, kind: pa.DataType) -> None:
    with pytest.raises(UnfitBatchError, match="values would change"):
        fitted(values, kind)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0.1, float("inf"), None], pa.float32(), [np.float32(0.1), float("inf"), None]),
        ([1.15], pa.decimal128(10, 2), [pytest.approx(1.15)]),
        ([dt.datetime(2024, 2, 29)], pa.date32(), [dt.date(2024, 2, 29)]),
        ([[1.0, float("nan")], None, []], pa.list_(pa.int64()), [[1, None], None, []]),
        (np.array([1.5, 2.0], np.float16), pa.float32(), [1.5, 2.0]),
        (torch.ones(2, 2).half(), pa.list_(pa.float32()), [[1.0, 1.0]] * 2),
        (np.array([]), pa.string(), []),
        (np.array([]), pa.list_(pa.float32()), []),
    ],
)
def test_what_has_an_equal_in_the_type_fits(
    values: Any, kind: pa.DataType, expected: list[Any]
) -> None:
    assert [
        float(one) if kind == pa.decimal128(10, 2) else one for one in fitted(values, kind)
    ] == (expected)


def inferred(column: pa.Array, function: Any = lambda values: values) -> pa.DataType:
    given = pa.RecordBatch.from_arrays([column], ["a"])
    results = [as_rows({"a": function(in_format(given, "numpy")["a"])})]
    return infer_schema("f", results, given).field("a").type


def test_whole_numbers_beside_nulls_in_lists_stay_whole() -> None:
    lists = pa.array([[1, None], [3]])
    assert inferred(lists) == pa.list_(pa.int64())


def test_floats_that_are_equal_to_whole_numbers_are_floats() -> None:
    assert inferred(pa.array([0, 0]), lambda values: values * 0.5) == pa.float64()
    assert inferred(pa.array([0, None])) == pa.int64()


def test_a_result_without_rows_shows_no_type_beside_others() -> None:
    given = pa.RecordBatch.from_arrays([pa.array(["x"])], ["b"])
    results = [as_rows({"a": np.array([])}), as_rows({"a": ["x"]})]
    assert infer_schema("f", results, given).field("a").type == pa.string()
