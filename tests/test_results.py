"""Columns of what pipelines return."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparkinfer.models.ddl import columns_as_ddl, parse_columns
from sparkinfer.models.results import MisfitError, as_row, infer_columns, plain


def test_numbers_of_libraries_become_pythons() -> None:
    found = plain({"a": np.float32(0.5), "b": np.array([1, 2]), "c": (torch.tensor(3), "x")})
    assert found == {"a": 0.5, "b": [1, 2], "c": [3, "x"]}
    assert (type(found["a"]), type(found["c"][0])) == (float, int)


@pytest.mark.parametrize(
    ("results", "columns"),
    [
        ([{"a": 1, "b": "x"}], "a bigint, b string"),
        ([[{"a": 1}], [{"a": 2.5}]], "a double"),
        ([[{"a": True}], {"a": None}], "a boolean"),
        ([{"a": [{"w": "x", "s": 1.0}]}, {"a": []}], "a array<struct<w: string, s: double>>"),
        ([[{"a": 1}], [{"a": 1}, {"a": 2}]], "result array<struct<a: bigint>>"),
        ([{"a": 1, "error": "x"}], "result struct<a: bigint, error: string>"),
        (["x", "y"], "result string"),
        ([[[0.5]]], "result array<array<double>>"),
    ],
)
def test_columns_are_inferred(results: list[Any], columns: str) -> None:
    found = infer_columns(results, not_named=["error"])
    assert columns_as_ddl(found) == columns
    for result in results:
        assert as_row(result, found).keys() == set(found.names)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"a": 1}, {"a": "x"}], "a is a string and int 1, which gives no type"),
        ([{"a": None}], "a is nothing, which gives no type"),
        ([{"a": []}], r"a\[\] is nothing"),
        ([{"a": True}, {"a": 1}], "a is bool True and int 1"),
        ([{"a": object()}], "a is of type object"),
        ([{"a": [{"x": 1}, {"y": 1}]}], r"a\[\] has no 'y', but x"),
    ],
)
def test_columns_that_cannot_be_inferred_say_why(results: list[Any], message: str) -> None:
    with pytest.raises(MisfitError, match=message):
        infer_columns(results)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"a": 1.5, "b": []}, "a is float 1.5, expected int"),
        ({"a": True, "b": []}, "a is bool True, expected int"),
        ({"a": 2**31, "b": []}, "a is int 2147483648, expected int"),
        ({"a": 1, "b": ["x", 1]}, r"b\[1\] is int 1, expected string"),
        ({"a": 1, "b": "x"}, "b is a string, expected array<string>"),
        ({"a": 1, "b": ["\ud800"]}, r"b\[0\] is a string, expected string"),
        ({"a": 1}, "the result has no 'b', but a"),
        ({"a": 1, "b": [], "c": 1}, "the result has 'c', which the schema lacks"),
        ([{"a": 1, "b": []}] * 2, "the result is a list of 2, expected one with a, b"),
        ("x", "the result is a string, expected one with a, b"),
    ],
)
def test_a_result_that_does_not_fit_says_where(result: Any, message: str) -> None:
    with pytest.raises(MisfitError, match=message):
        as_row(result, parse_columns("a int, b array<string>", "task.schema"))


def test_what_fits_stays_as_it_is() -> None:
    columns = parse_columns("a float, b struct<c: bigint, d: boolean>, e string", "task.schema")
    result = {"a": 3, "b": {"c": 2**40, "d": False}, "e": None}
    assert as_row([result], columns) == result
    assert as_row([1, 2], parse_columns("result array<int>", "task.schema")) == {"result": [1, 2]}
