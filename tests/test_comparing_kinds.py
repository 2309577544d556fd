"""How results of each task are compared, once it is known which rows belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.comparing.differences import EDGES, DifferenceSums
from sparkinfer.comparing.kinds import comparison_of
from sparkinfer.comparing.kinds.base import Summary, Unlike
from sparkinfer.comparing.kinds.texts import parted
from sparkinfer.comparing.kinds.vectors import cosine_distances
from sparkinfer.comparing.largest import LargestRows
from sparkinfer.comparing.outputs import FUNCTION, ScoredModel
from sparkinfer.exceptions import InputError
from sparkinfer.models.tasks.entities import ENTITY


def model(task: str, labels: Sequence[str] = (), columns: Sequence[str] = ()) -> ScoredModel:
    return ScoredModel("", task, "", tuple(labels), (), {name: name for name in columns}, {})


def compared(a: ScoredModel, b: ScoredModel, *parts: tuple[pa.Table, pa.Table]) -> Any:
    """Returns how the rows of each part differ, and the summary."""
    comparison = comparison_of(a, b)
    unlike = [comparison.add(*part) for part in parts]
    return unlike, comparison.summary()


def classified(rows: Sequence[tuple[str | None, list[float]]]) -> pa.Table:
    return pa.table(
        {
            "prediction": pa.array([row[0] for row in rows], pa.string()),
            "probabilities": pa.array([row[1] for row in rows], pa.list_(pa.float32())),
        }
    )


LABELS = ("no", "yes")


def test_labels_and_probabilities_are_compared_by_name_whatever_their_order() -> None:
    a = classified([("yes", [0.25, 0.75]), ("no", [0.75, 0.25]), ("no", [0.75, 0.25])])
    b = classified([("yes", [0.75, 0.25]), ("yes", [0.5, 0.5]), ("no", [0.25, 0.75])])
    models = model("text-classification", LABELS), model("text-classification", LABELS[::-1])
    [unlike], found = compared(*models, (a, b))
    assert unlike.changed.tolist() == [False, True, False]
    assert unlike.differences.tolist() == [0, 0.25, 0]
    assert found.changed == 1
    assert found.changes == {("no", "yes"): 1}
    assert found.differences["of any label"].largest == 0.25
    assert found.differences["of the predicted label"].rows == 3
    assert (found.only_a, found.only_b) == ((), ())


def test_a_label_of_one_model_alone_is_named_and_the_others_are_compared() -> None:
    a, b = classified([("yes", [0.25, 0.75])]), classified([("maybe", [0.5, 0.5])])
    models = model("text-classification", LABELS), model("text-classification", ("no", "maybe"))
    [unlike], found = compared(*models, (a, b))
    assert unlike.changed.tolist() == [True]
    assert unlike.differences.tolist() == [0.25]
    assert (found.only_a, found.only_b) == (("yes",), ("maybe",))
    assert "of the predicted label" not in found.differences


def test_labels_of_one_name_are_told_apart_by_their_order() -> None:
    a, b = classified([("x", [0.25, 0.75])]), classified([("x", [0.75, 0.25])])
    models = model("text-classification", ("x", "x")), model("text-classification", ("x", "x"))
    assert compared(*models, (a, b))[1].differences["of any label"].largest == 0.5


def test_a_regression_has_numbers_and_no_changes() -> None:
    a, b = classified([(None, [3.0]), (None, [-1.0])]), classified([(None, [3.5]), (None, [-1.0])])
    models = model("text-classification", ["LABEL_0"]), model("text-classification", ["score"])
    [unlike], found = compared(*models, (a, b))
    assert found.changed is None
    assert list(found.differences) == ["of any number"]
    assert found.differences["of any number"].largest == 0.5
    assert unlike.differences.tolist() == [0.5, 0]


def test_labels_and_a_regression_cannot_be_compared() -> None:
    a, b = classified([("no", [0.9])]), classified([(None, [0.9])])
    with pytest.raises(InputError, match="one model predicts labels, the other numbers"):
        compared(*[model("text-classification", ["no"])] * 2, (a, b))


def test_probabilities_without_names_are_refused() -> None:
    a = classified([("no", [0.5, 0.25, 0.25])])
    with pytest.raises(InputError, match=r"rows have \[3\] probabilities, .* 2 labels: no, yes"):
        compared(*[model("text-classification", LABELS)] * 2, (a, a))


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 4), max_size=12), st.data())
def test_differences_do_not_depend_on_how_rows_are_divided(rows: Any, data: Any) -> None:
    tables = [
        classified([("no" if row[i] > row[i + 1] else "yes", list(row[i : i + 2])) for row in rows])
        for i in (0, 2)
    ]
    cut = data.draw(st.integers(0, len(rows)))
    models = [model("text-classification", LABELS)] * 2
    one = compared(*models, (tables[0], tables[1]))[1]
    parts = [(tables[0][:cut], tables[1][:cut]), (tables[0][cut:], tables[1][cut:])]
    two = compared(*models, *parts)[1]
    assert one == two
    expected = [max(abs(row[0] - row[2]), abs(row[1] - row[3])) for row in rows]
    assert one.differences["of any label"].largest == max(expected) if rows else True


def zero_shot(rows: Sequence[dict[str, float]]) -> pa.Table:
    best = [sorted(row.items(), key=lambda one: -one[1]) for row in rows]
    return pa.table(
        {
            "prediction": [row[0][0] for row in best],
            "labels": pa.array([[one[0] for one in row] for row in best], pa.list_(pa.string())),
            "scores": pa.array([[one[1] for one in row] for row in best], pa.list_(pa.float32())),
        }
    )


def test_labels_of_zero_shot_are_compared_by_name_in_each_row() -> None:
    a = zero_shot([{"sad": 0.75, "glad": 0.25}, {"sad": 0.75, "glad": 0.25}])
    b = zero_shot([{"sad": 0.75, "glad": 0.25}, {"sad": 0.25, "glad": 0.75}])
    models = [model("zero-shot-classification", ["sad", "glad"])] * 2
    [unlike], found = compared(*models, (a, b))
    assert unlike.changed.tolist() == [False, True]
    assert unlike.differences.tolist() == [0, 0.5]
    assert found.changes == {("sad", "glad"): 1}


def vectors(rows: Sequence[Sequence[float]]) -> pa.Table:
    return pa.table({"embedding": pa.array(rows, pa.list_(pa.float32()))})


def test_embeddings_are_compared_by_their_direction() -> None:
    a, b = vectors([[1, 0], [1, 0], [1, 0]]), vectors([[2, 0], [0, 3], [-1, 0]])
    [unlike], found = compared(*[model("embedding")] * 2, (a, b))
    assert unlike.differences.tolist() == pytest.approx([0, 1, 2])
    assert found.changed is None
    assert found.differences["cosine distance"].equal == 1


def test_equal_vectors_are_at_exactly_no_distance() -> None:
    found = np.random.default_rng(0).normal(size=(100, 33))
    assert cosine_distances(found, found).tolist() == [0.0] * 100
    nearly = found * (1 + 1e-9)
    assert cosine_distances(found, nearly).max() < 1e-30


@pytest.mark.parametrize(("one", "other", "expected"), [(0, 0, 0.0), (0, 1, 1.0), (1, 0, 1.0)])
def test_a_vector_of_no_length_has_its_distance(one: int, other: int, expected: float) -> None:
    assert cosine_distances(np.full((1, 4), float(one)), np.full((1, 4), float(other))) == expected


def test_vectors_of_different_dimensions_are_refused() -> None:
    with pytest.raises(InputError, match="the vectors have 2 and 3 numbers"):
        compared(*[model("embedding")] * 2, (vectors([[1, 0]]), vectors([[1, 0, 0]])))


def entities(rows: Sequence[Sequence[tuple[str, int | None, str]]]) -> pa.Table:
    values = [
        [
            {"entity": label, "score": 0.5, "start": at, "end": at and at + 3, "word": word}
            for label, at, word in row
        ]
        for row in rows
    ]
    return pa.table({"entities": pa.array(values, pa.list_(ENTITY))})


def test_entities_are_the_same_by_place_and_label() -> None:
    a = entities(
        [[("PER", 1, "Ann"), ("LOC", 9, "Ulm")], [], [("PER", 4, "Bob")], [("PER", 1, "I")]]
    )
    b = entities(
        [[("PER", 1, "ann"), ("ORG", 9, "Ulm")], [], [("PER", 5, "Bob")], [("PER", 1, "I")]]
    )
    [unlike], found = compared(*[model("token-classification")] * 2, (a, b))
    assert unlike.changed.tolist() == [True, False, True, False]
    assert unlike.differences.tolist() == [2, 0, 2, 0]
    assert found.changed == 2
    assert found.changes == {("LOC", "ORG"): 1}
    assert list(found.counts.values()) == [2, 2, 2]


def test_entities_without_places_are_the_same_by_word_as_often_as_both_have_them() -> None:
    a, b = entities([[("PER", None, "Ann")] * 3]), entities([[("PER", None, "Ann")] * 2])
    found = compared(*[model("token-classification")] * 2, (a, b))[1]
    assert list(found.counts.values()) == [2, 1, 0]
    other = entities([[("PER", None, "Bob")]])
    assert list(compared(*[model("token-classification")] * 2, (a, other))[1].counts.values()) == [
        *(0, 3, 1)
    ]


def generated(rows: Sequence[tuple[str, int, str]]) -> pa.Table:
    texts, tokens, reasons = zip(*rows, strict=True)
    return pa.table(
        {"generated_text": texts, "n_generated_tokens": tokens, "finish_reason": reasons}
    )


def test_generated_texts_are_compared_by_where_they_part() -> None:
    a = generated([("a good film", 3, "stop"), ("bad", 1, "stop")])
    b = generated([("a good farce", 4, "length"), ("bad", 1, "stop")])
    [unlike], found = compared(*[model("text-generation")] * 2, (a, b))
    assert unlike.changed.tolist() == [True, False]
    assert unlike.differences.tolist() == [pytest.approx(1 - 8 / 12), 0]
    assert found.changed == 1
    assert found.counts == {"rows with another finish_reason": 1}
    assert found.differences["generated tokens"].largest == 1


@pytest.mark.parametrize(
    ("one", "other", "share"), [("", "", 0), ("", "ab", 1), ("ab", "abcd", 0.5), ("ab", "ab", 0)]
)
def test_texts_part_at_the_first_character_that_differs(one: str, other: str, share: float) -> None:
    assert parted(one, other) == parted(other, one) == share


def of_function(**columns: Any) -> tuple[ScoredModel, pa.Table]:
    return model(FUNCTION, columns=list(columns)), pa.table(columns)


def test_columns_of_functions_are_compared_value_by_value() -> None:
    one, a = of_function(n=pa.array([1, 2, None]), x=[1.0, math.nan, 2.0], tags=[["a"], [], None])
    other, b = of_function(
        n=pa.array([1, 3, None], pa.int8()), x=[1.5, math.nan, 2.0], own=[1, 2, 3]
    )
    [unlike], found = compared(one, other, (a, b))
    assert unlike.changed.tolist() == [True, True, False]
    assert found.counts == {"rows with another n": 1, "rows with another x": 1}
    assert found.differences["x"].largest == 0.5
    assert found.differences["x"].rows == 3
    assert found.notes == ("only in A: column 'tags'", "only in B: column 'own'")


def test_columns_whose_types_have_no_values_in_common_are_refused() -> None:
    one, a = of_function(n=["1"])
    other, b = of_function(n=[1])
    with pytest.raises(InputError, match="column 'n': its types, string and int64"):
        compared(one, other, (a, b))


def test_results_without_a_column_in_common_are_refused() -> None:
    with pytest.raises(InputError, match="no column in common: n in one, m in the other"):
        comparison_of(of_function(n=[1])[0], of_function(m=[1])[0])


def test_different_tasks_are_refused() -> None:
    with pytest.raises(InputError, match="embedding and text-generation have different results"):
        comparison_of(model("embedding"), model("text-generation"))


@pytest.mark.parametrize(
    "task", ["text-classification", "embedding", "token-classification", "zero-shot-classification"]
)
def test_no_rows_have_no_differences(task: str) -> None:
    tables = {
        "text-classification": classified([]),
        "embedding": vectors([]),
        "token-classification": entities([]),
        "zero-shot-classification": zero_shot([]).cast(zero_shot([{"a": 1.0}]).schema),
    }
    [unlike], found = compared(*[model(task, LABELS)] * 2, (tables[task], tables[task]))
    assert isinstance(unlike, Unlike)
    assert len(unlike.changed) == len(unlike.differences) == 0
    assert isinstance(found, Summary)
    assert found.differences == {}


@given(st.lists(st.sampled_from([0.0, 1e-9, 1e-8, 3e-5, 0.5, 1.0, 7.0]), min_size=1, max_size=300))
def test_differences_are_those_of_all_values_at_once(values: list[float]) -> None:
    sums = DifferenceSums()
    for start in range(0, len(values), 7):
        sums.add(np.array(values[start : start + 7]))
    found = sums.result()
    assert found is not None
    assert found.largest == max(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    below = sum(value <= found.p99 * (1 + 1e-6) for value in values)
    assert below >= 0.99 * len(values)
    assert any(np.float32(value) == np.float32(found.p99) for value in values)
    assert sum(found.histogram) == len(values)
    assert found.equal == values.count(0.0)
    assert found.histogram[-1] == values.count(7.0)
    assert found.histogram[EDGES.index(1e-8)] == values.count(1e-9) + values.count(1e-8)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=30), st.integers(0, 5))
def test_the_rows_that_changed_come_first_then_those_that_differ_most(rows: Any, most: int) -> None:
    kept = LargestRows(most)
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    for some in np.array_split(order, 3):
        changed = np.array([rows[i][0] for i in some], np.bool_)
        sizes = np.array([rows[i][1] for i in some], np.float64)
        kept.add(changed, sizes, some, some + 100)
    expected = sorted(
        ((*row, place) for place, row in enumerate(rows) if row[0] or row[1]),
        key=lambda one: (-one[0], -one[1], one[2]),
    )
    assert kept.result() == [(c, float(d), p, p + 100) for c, d, p in expected[:most]]
