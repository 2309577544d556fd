"""Batches in the forms in which a user's function takes and returns them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from sparkinfer.functions.formats import UnfitBatchError, as_rows, in_format


def rows(**columns: Any) -> pa.RecordBatch:
    return pa.table(columns).combine_chunks().to_batches()[0]


def test_the_default_is_a_dict_of_numpy_arrays_of_the_columns_own_types() -> None:
    given = in_format(rows(a=pa.array([1, 2], pa.int16()), s=["x", None]), "default")
    assert given["a"].dtype == np.int16
    assert given["a"].tolist() == [1, 2]
    assert given["s"].tolist() == ["x", None]


@pytest.mark.parametrize("column", ["a", "s", "l"])
def test_zero_copy_arrays_are_read_only(column: str) -> None:
    given = in_format(rows(a=[1.0, 2.0], s=["x", "y"], l=[[1], [2]]), "numpy")
    with pytest.raises(ValueError, match="read-only"):
        given[column][0] = given[column][1]


@pytest.mark.parametrize("batch_format", ["numpy", "pandas"])
def test_copies_may_be_written_into_and_leave_the_rows_alone(batch_format: str) -> None:
    batch = rows(a=[1.0, 2.0])
    given = in_format(batch, batch_format, read_only=False)
    if batch_format == "pandas":
        given.loc[0, "a"] = 9.0
    else:
        given["a"][0] = 9.0
    assert batch.column(0).to_pylist() == [1.0, 2.0]


@pytest.mark.parametrize("batch_format", ["numpy", "pandas"])
def test_whole_numbers_beside_nulls_that_no_float_holds_are_refused(batch_format: str) -> None:
    fits, too_large = rows(a=[2**53, None]), rows(a=[2**53 + 1, None])
    assert np.isnan(in_format(fits, batch_format)["a"][1])
    with pytest.raises(UnfitBatchError, match="column 'a' holds nulls and whole numbers beyond"):
        in_format(too_large, batch_format)
    assert in_format(too_large, "pyarrow").column("a").to_pylist() == [2**53 + 1, None]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[2**53 + 1, None]]),
        pa.array([{"x": 2**53 + 1}, {"x": None}]),
        pa.array([[{"x": 2**53 + 1}, {"x": None}]]),
        pa.array([[("k", 2**53 + 1), ("j", None)]], pa.map_(pa.string(), pa.int64())),
    ],
)
def test_the_same_numbers_within_lists_structs_and_maps_are_refused(column: pa.Array) -> None:
    with pytest.raises(UnfitBatchError, match="column 'a' holds nulls and whole numbers beyond"):
        in_format(rows(a=column), "numpy")


def test_lists_of_equal_lengths_are_an_array_of_two_dimensions() -> None:
    equal = in_format(rows(v=[[1.0, 2.0], [3.0, 4.0]]), "numpy")["v"]
    unequal = in_format(rows(v=[[1.0, 2.0], [3.0]]), "numpy")["v"]
    assert equal.shape == (2, 2)
    assert [one.tolist() for one in unequal] == [[1.0, 2.0], [3.0]]


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 2), (3, 1), (0, 4)])
def test_an_array_of_several_dimensions_comes_back_as_it_was(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    given = in_format(as_rows({"v": values}), "numpy")["v"]
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given, values)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ({"a": [1, None]}, [1, None]),
        ({"a": np.array(["x", "yy"])}, ["x", "yy"]),
        ({"a": torch.tensor([1.5, 2.5])}, [1.5, 2.5]),
        ({"a": [torch.tensor([1, 2]), torch.tensor([3])]}, [[1, 2], [3]]),
        ({"a": [np.zeros((1, 2)), np.ones((1, 2))]}, [[[0.0, 0.0]], [[1.0, 1.0]]]),
        ({"a": [{"b": 1}, {"b": 2}]}, [{"b": 1}, {"b": 2}]),
        ({"a": pd.Series([1, 2])}, [1, 2]),
        ({"a": pd.Series([2**53 + 1, None], dtype="Int64")}, [2**53 + 1, None]),
        ({"a": pd.Series(["x", float("nan")])}, ["x", None]),
        ({"a": np.ma.array([[1, 2]], mask=[[False, True]])}, [[1, None]]),
        ({"a": pa.chunked_array([[1], [2]])}, [1, 2]),
        (pa.table({"a": [1, 2]}), [1, 2]),
        (pd.DataFrame({"a": ["x", None]}), ["x", None]),
        (pd.DataFrame({"a": [1.0, float("nan")]}), [1.0, None]),
    ],
)
def test_what_a_function_may_return(returned: Any, expected: list[Any]) -> None:
    assert as_rows(returned).column(0).to_pylist() == expected


def test_nan_in_an_array_of_numpy_stays_nan() -> None:
    assert np.isnan(as_rows({"a": np.array([np.nan])}).column(0).to_pylist()[0])


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "it returned nothing, expected a dict of arrays"),
        ([1, 2], "of type list, expected a dict of arrays, a pandas DataFrame or an Arrow table"),
        ({}, "it returned no columns"),
        ({"a": "xy"}, "a value of type str for column 'a', expected an array or a list"),
        ({"a": 3}, "a value of type int for column 'a'"),
        ({"a": {"x", "y"}}, "a value of type set for column 'a', expected an array or a list"),
        ({"a": [1], "b": [1, 2]}, "columns of unlike lengths: a 1, b 2"),
        ({"a": [object()]}, "column 'a' that give none"),
        ({"a": [1], "A": [1]}, "two columns named 'a'"),
        ({7: [1]}, "a column named 7, expected a string"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns named 'a'"),
        ({"a": np.array(3)}, "column 'a' that give none: an array without a dimension"),
    ],
)
def test_what_is_no_batch_is_named(returned: Any, problem: str) -> None:
    with pytest.raises(UnfitBatchError) as refused:
        as_rows(returned)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)
