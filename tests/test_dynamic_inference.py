"""Dicts of arrays: padded batches, and outputs for each call."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.batching.dynamic import aio, inference
from sparkinfer.batching.dynamic.features import Features, rows_of
from sparkinfer.batching.dynamic.inference import ModelBatchProcessor
from sparkinfer.batching.dynamic.options import PaddingOptions
from sparkinfer.exceptions import BatchOutputError, ConfigError, InputError

Array = npt.NDArray[Any]


def padded(rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return Features(PaddingOptions(**options)).inputs(rows)


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_feature_is_padded_by_its_own_longest_and_keeps_its_dtype(side: str) -> None:
    rows = [
        {"ids": np.array([1, 2], np.int32), "pixels": np.ones((2, 1), np.float16), "flag": True},
        {"ids": np.array([3], np.int32), "pixels": np.ones((1, 3), np.float16), "flag": False},
    ]
    for row in rows:
        row["flag"] = np.bool_(row["flag"])
    made = padded(rows, pad_tokens={"ids": 9}, padding_side=side)
    assert [made[name].dtype for name in made] == [np.int32, np.float16, np.bool_]
    assert made["flag"].tolist() == [True, False]
    assert made["ids"].tolist() == [[1, 2], [3, 9] if side == "right" else [9, 3]]
    assert made["pixels"].shape == (2, 2, 3)
    if side == "right":
        assert made["pixels"].tolist() == [[[1, 0, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]]
    else:
        assert made["pixels"].tolist() == [[[0, 0, 1], [0, 0, 1]], [[0, 0, 0], [1, 1, 1]]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.bfloat16, torch.bool])
def test_tensors_stay_tensors(dtype: torch.dtype) -> None:
    rows = [{"x": torch.ones(2, dtype=dtype)}, {"x": torch.ones(1, dtype=dtype)}]
    made = padded(rows)["x"]
    assert made.dtype is dtype
    assert made.tolist() == [[1, 1], [1, 0]]


shapes = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=6)


@given(shapes, st.sampled_from(["right", "left"]))
def test_what_is_padded_holds_each_row_where_it_belongs(
    sizes: list[tuple[int, int]], side: str
) -> None:
    rows = [{"x": np.full(shape, number + 1)} for number, shape in enumerate(sizes)]
    made = padded(rows, padding_side=side, pad_tokens={"x": 0})["x"]
    for row, place in zip(rows, made, strict=True):
        height, width = row["x"].shape
        own = (
            place[:height, :width] if side == "right" else place[place.shape[0] - height :, -width:]
        )
        assert (own == row["x"]).all()
        assert (place == 0).sum() == place.size - row["x"].size


def test_a_call_gets_what_the_function_gives_for_its_rows() -> None:
    def function(features: dict[str, Array]) -> dict[str, Any]:
        ids = features["ids"]
        return {"sum": ids.sum(1), "both": [ids.min(1), (ids.max(1),)]}

    with ModelBatchProcessor(function) as batcher:
        made = batcher({"ids": np.array([[1, 2], [3, 4], [5, 6]], np.int16)})
        assert made["sum"].tolist() == [3, 7, 11]
        assert made["both"][0].dtype == np.int16
        assert made["both"][1][0].tolist() == [2, 4, 6]
        assert batcher(ids=[[1, 2, 3]])["sum"].tolist() == [6]


def test_callers_share_a_padded_batch() -> None:
    shapes = []

    def function(ids: Array, mask: Array) -> Array:
        shapes.append(ids.shape)
        return (ids * mask).sum(1)

    with (
        ModelBatchProcessor(
            function, batch_size=4, timeout_ms=10**6, pad_tokens={"ids": 7}, spread_kwargs=True
        ) as batcher,
        ThreadPoolExecutor(4) as pool,
    ):

        def call(length: int) -> int:
            ones = np.ones((1, length), int)
            return int(batcher(ids=ones * length, mask=ones)[0])

        assert list(pool.map(call, [3, 4, 5, 6])) == [9, 16, 25, 36]
        assert 0 < batcher.stats.padding_share == pytest.approx(6 / 24)
    assert shapes == [(4, 6)]


def test_what_cannot_be_stacked_shares_no_batch() -> None:
    batches = []
    entered, may_go = threading.Semaphore(0), threading.Semaphore(0)

    def function(features: dict[str, Array]) -> Array:
        batches.append({name: (array.dtype.name, array.ndim) for name, array in features.items()})
        entered.release()
        may_go.acquire()
        return features["x"]

    calls: list[dict[str, Array]] = [
        {"x": np.zeros((1, 2), np.int64)},
        {"x": np.zeros((1, 2), np.float32)},
        {"x": np.zeros((1, 2, 2), np.int64)},
        {"x": np.zeros((1, 2), np.int64), "y": np.zeros((1, 2), np.int64)},
    ]
    with ModelBatchProcessor(function) as batcher, ThreadPoolExecutor(5) as pool:
        first = pool.submit(batcher, calls[0])
        entered.acquire()
        made = [pool.submit(batcher, call) for call in calls]
        for _ in range(5):
            may_go.release()
        for call, result in zip(calls, made, strict=True):
            assert result.result(60).dtype == call["x"].dtype
            assert result.result(60).shape == call["x"].shape
        first.result(60)
    assert {"x": ("float32", 2)} in batches
    assert {"x": ("int64", 3)} in batches
    assert {"x": ("int64", 2), "y": ("int64", 2)} in batches


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda features: features["x"][1:], "an array with 1 rows for a batch of 2 items"),
        (lambda features: {"a": features["x"], "b": features["x"][:0]}, "an array with 0 rows"),
        (lambda features: 1.0, "returned float, which has no rows"),
        (lambda features: [0.5, 0.5], "returned float, which has no rows"),
        (lambda features: [], "returned list, which has no rows"),
    ],
)
def test_outputs_without_a_row_for_each_item_are_an_error(function: Any, message: str) -> None:
    with ModelBatchProcessor(function) as batcher, pytest.raises(BatchOutputError) as raised:
        batcher(x=np.zeros((2, 3)))
    assert message in str(raised.value)


def test_outputs_that_depend_on_the_padding_are_not_joined() -> None:
    with (
        ModelBatchProcessor(lambda features: features["x"], batch_size=1) as batcher,
        pytest.raises(BatchOutputError, match=r"have the shapes \[\(1,\), \(2,\)\]"),
    ):
        batcher(x=[np.zeros(1), np.zeros(2)])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, "a: 2, b: 3; give each the same"),
        ({"a": np.zeros((0, 1))}, "a: 0; give each"),
        ({}, "none; give each"),
        ([1], "the features are list; expected a dict"),
        ({"a": "abc"}, "the feature 'a' is 'abc'; expected an array or tensor"),
        ({"a": np.array(3)}, "the feature 'a' is array(3); expected an array or tensor"),
        ({"a": {0: 1}}, "the feature 'a' is {0: 1}; expected an array or tensor"),
        ({"a": np.ma.array([[1]], mask=[[True]])}, "'a' is a masked array"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        rows_of(features, {})
    assert message in str(refused.value)


def test_features_are_given_in_one_way() -> None:
    with pytest.raises(InputError, match=r"as a dict and by name \(b\)"):
        rows_of({"a": np.zeros((1, 1))}, {"b": np.zeros((1, 1))})


def test_a_padding_side_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="padding_side='middle': expected 'right' or 'left'"):
        inference.dynamically(lambda features: features, padding_side="middle")


@pytest.mark.parametrize("is_plain", [True, False])
def test_coroutines_share_a_padded_batch(is_plain: bool) -> None:
    shapes = []

    def plain(features: dict[str, torch.Tensor]) -> torch.Tensor:
        shapes.append(tuple(features["ids"].shape))
        return features["ids"].sum(1)

    async def coroutine(features: dict[str, torch.Tensor]) -> torch.Tensor:
        return plain(features)

    async def main() -> None:
        batcher = aio.inference.dynamically(
            plain if is_plain else coroutine, batch_size=3, timeout_ms=500
        )
        calls = [batcher(ids=torch.ones(1, length, dtype=torch.int64)) for length in (4, 5, 6)]
        assert [one.tolist() for one in await asyncio.gather(*calls)] == [[4], [5], [6]]
        assert (await batcher({"ids": torch.ones(2, 3)})).tolist() == [3, 3]

    asyncio.run(main())
    assert shapes == [(3, 6), (2, 3)]


def test_a_coroutine_can_call_the_one_for_threads() -> None:
    with ModelBatchProcessor(lambda features: features["x"] + 1) as batcher:
        made = asyncio.run(batcher.acall(x=np.zeros((2, 2)), timeout_s=60))
    assert made.tolist() == [[1, 1], [1, 1]]


def test_rows_of_pandas_are_taken_by_their_place() -> None:
    @inference.dynamically
    def sums(features: dict[str, Any]) -> Any:
        return features["a"] + 10 * features["b"]

    assert sums(a=pd.Series([1, 2], index=[1, 0]), b=np.array([1, 2])).tolist() == [11, 22]


def test_outputs_of_pandas_are_no_arrays() -> None:
    by_label = inference.dynamically(lambda features: pd.Series(features["a"], index=[1, 0]))
    with pytest.raises(BatchOutputError, match="returned Series"):
        by_label(a=np.array([1, 2]))


def test_an_empty_list_has_the_dtype_of_the_others() -> None:
    [first, second] = rows_of({"a": [[1, 2], []]}, {})
    assert first["a"].dtype == second["a"].dtype == np.int64
    assert second["a"].shape == (0,)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("uint8", -100), ("int8", 300), ("int64", 0.5), ("int64", float("nan")), ("bool", 7)],
)
@pytest.mark.parametrize("is_tensor", [False, True])
def test_padding_that_a_dtype_cannot_hold_is_refused(
    dtype: str, fill: float, is_tensor: bool
) -> None:
    rows: list[Any] = [np.ones(size, dtype) for size in (1, 2)]
    if is_tensor:
        rows = [torch.from_numpy(row) for row in rows]
    with pytest.raises(ConfigError, match=rf"pad_tokens={{'a': {fill}}}: .* has dtype .*{dtype}"):
        padded([{"a": row} for row in rows], pad_tokens={"a": fill})


@pytest.mark.parametrize(("dtype", "fill"), [("float16", -float("inf")), ("float32", 0.1)])
def test_padding_may_be_infinite_or_rounded(dtype: str, fill: float) -> None:
    rows = [{"a": np.ones(size, dtype)} for size in (1, 2)]
    assert padded(rows, pad_tokens={"a": fill})["a"][0, 1] == np.array(fill, dtype)


def test_tensors_with_gradients_are_padded() -> None:
    values = torch.ones(2, 2, requires_grad=True)
    made = padded(rows_of({"a": [values[0], values[1][:1]]}, {}))["a"]
    made.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1, 1], [1, 0]]


def test_outputs_are_not_overwritten_by_the_next_batch() -> None:
    kept = np.zeros((2, 1))
    own = Features(PaddingOptions())
    results = own.results({"a": kept, "b": [torch.zeros(2, 1)]}, 2)
    kept[:] = 9
    assert [one["a"].tolist() for one in results] == [[0], [0]]
    first, second = (one["b"][0] for one in results)
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


@pytest.mark.parametrize("module", [inference, aio.inference])
def test_an_unknown_option_is_told_the_nearest_of_all(module: Any) -> None:
    with pytest.raises(ConfigError, match="'pad_token'; did you mean 'pad_tokens'"):
        module.dynamically(lambda features: features, pad_token={"a": 0})


@pytest.mark.parametrize("array", [np.array([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])])
def test_what_the_function_changes_is_not_the_callers(array: Any) -> None:
    @inference.dynamically
    def change(features: dict[str, Any]) -> Any:
        features["a"] *= 0
        return features["a"]

    result = change(a=array)
    assert (array.tolist(), result.tolist()) == ([[1, 2]], [[0, 0]])
