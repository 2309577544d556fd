"""How rows are distributed: what is counted of them, how counts add up, and what is read back."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.metrics.distributions import (
    CONFIDENCE_BINS,
    LABEL_LENGTH,
    LENGTH_EDGES,
    MOST_LABELS,
    Distributions,
    DistributionTaker,
    added,
    read_distributions,
)
from sparkinfer.models.tasks import TASKS, make_task
from sparkinfer.models.tasks.base import scored_schema
from sparkinfer.option_groups import TaskConfig

SCORED = pa.schema(
    [
        ("prediction", pa.string()),
        ("probability", pa.float32()),
        ("n_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("error", pa.string()),
    ]
)


def taken(*rows: tuple[Any, ...], schema: pa.Schema = SCORED, prefix: str = "") -> Distributions:
    taker = DistributionTaker(prefix, schema)
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    taker.add(pa.Table.from_arrays(arrays, schema=schema))
    return taker.distributions()


def bins(counts: list[int]) -> dict[int, int]:
    return {number: count for number, count in enumerate(counts) if count}


def bin_of(length: int) -> int:
    return 1 + max(number for number, edge in enumerate(LENGTH_EDGES) if edge <= length)


def test_lengths_are_counted_by_the_edges_and_texts_of_no_token_apart() -> None:
    lengths = [0, 1, 2, 3, 4, 5, 6, 7, 8, 1000, 2**20, 2**25]
    found = taken(*(("a", 0.5, n, n == 5, None) for n in lengths))
    expected: dict[int, int] = {0: 1}
    for n in lengths[1:]:
        expected[bin_of(n)] = expected.get(bin_of(n), 0) + 1
    assert bins(found.lengths) == expected
    assert bins(found.truncated) == {bin_of(5): 1}
    assert len(found.lengths) == len(found.truncated) == 1 + len(LENGTH_EDGES)


def test_a_row_without_a_text_is_in_no_bin() -> None:
    found = taken(("a", 0.9, 4, False, None), (None, None, None, None, "text is null"))
    assert (sum(found.lengths), found.labels, sum(found.confidences)) == (1, {"a": 1}, 1)


def test_confidences_are_counted_in_bins_of_equal_width_and_1_in_the_last() -> None:
    found = taken(*(("a", share, 1, False, None) for share in (0.0, 0.5, 0.99, 1.0)))
    last = CONFIDENCE_BINS - 1
    assert bins(found.confidences) == {0: 1, CONFIDENCE_BINS // 2: 1, last: 2}


@pytest.mark.parametrize(
    ("label", "number", "labels"), [(None, 0.5, {}), ("a", 3.5, {"a": 1}), ("a", -0.1, {"a": 1})]
)
def test_a_number_that_is_no_probability_of_a_label_leaves_no_confidences(
    label: str | None, number: float, labels: dict[str, int]
) -> None:
    found = taken((label, number, 1, False, None))
    assert (found.labels, sum(found.confidences)) == (labels, 0)
    found.add(taken(("b", 0.5, 1, False, None)))
    assert sum(found.confidences) == (0 if labels else 1)


def test_labels_beyond_the_most_and_very_long_ones_are_counted_together() -> None:
    rows = [(f"label {n}", 0.5, 1, False, None) for n in range(MOST_LABELS + 3)]
    found = taken(*rows, *rows)
    assert (len(found.labels), found.other_labels) == (MOST_LABELS, 6)
    assert set(found.labels.values()) == {2}
    found.add(
        taken(("label 0", 0.5, 1, False, None), ("x" * (LABEL_LENGTH + 1), 0.5, 1, False, None))
    )
    assert (found.labels["label 0"], found.other_labels) == (3, 7)
    assert sum(found.confidences) == len(rows) * 2 + 2


def test_the_finish_reason_is_the_label_of_what_was_generated() -> None:
    schema = scored_schema(make_task(TaskConfig("text-generation")), "m_")
    found = taken(
        ("a text", 3, "stop", 4, False, None),
        ("another", 9, "length", 4, True, None),
        schema=schema,
        prefix="m_",
    )
    assert (found.labels, found.confidences) == ({"stop": 1, "length": 1}, [])
    assert (sum(found.lengths), sum(found.truncated)) == (2, 1)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_rows_of_every_task_are_taken(task: str) -> None:
    options = {"candidate_labels": ["a"]} if task.startswith("zero") else {}
    schema = scored_schema(make_task(TaskConfig(task, options)))
    taker = DistributionTaker("", schema)
    taker.add(schema.empty_table())
    for kind in (pa.Table, pa.RecordBatch):
        taker.add(kind.from_pylist([{"n_tokens": 4, "truncated": False}], schema=schema))
    found = taker.distributions()
    assert bins(found.lengths) == {bin_of(4): 2}
    assert found.labels == {}


def test_a_column_that_the_model_did_not_add_is_not_looked_at() -> None:
    lengths = pa.schema([("n_tokens", pa.int32()), ("truncated", pa.bool_())])
    taker = DistributionTaker("", lengths)
    taker.add(pa.table({"prediction": ["of the input"], "n_tokens": [1], "truncated": [False]}))
    assert (taker.distributions().labels, sum(taker.distributions().lengths)) == ({}, 1)


def test_distributions_come_back_from_their_state_and_add_up_by_model() -> None:
    one, other = taken(("a", 0.2, 4, False, None)), taken(("b", 0.9, 9, True, None))
    back = [read_distributions(json.loads(json.dumps(found.state()))) for found in (one, other)]
    assert back == [one, other]
    total = added([{"m": back[0]}, {"m": back[1], "n": back[1]}])
    assert total == {"m": taken(("a", 0.2, 4, False, None), ("b", 0.9, 9, True, None)), "n": other}
    assert Distributions().state() == {}


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {"lengths": [1, 2]},
        {"lengths": [-1] * (1 + len(LENGTH_EDGES))},
        {"truncated": ["1"] * (1 + len(LENGTH_EDGES))},
        {"confidences": 3},
        {"labels": {"a": 1.5}},
        {"labels": [1]},
        {"other_labels": None},
        {"surprise": 1},
    ],
)
def test_a_state_that_makes_no_sense_is_taken_for_none(state: Any) -> None:
    assert read_distributions(state) == Distributions()
