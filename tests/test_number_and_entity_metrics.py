"""Metrics of regressions, entities and labels of the user's."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
)

from sparkinfer.metrics.base import Evaluation
from sparkinfer.metrics.entities import EntityEvaluation
from sparkinfer.metrics.measure import Measure, Measured, States
from sparkinfer.metrics.texts import TextEvaluation
from sparkinfer.metrics.zero_shot import ZeroShotEvaluation
from sparkinfer.models.tasks.entities import ENTITY


def measure_of(evaluation: Evaluation, labels: Sequence[str]) -> Measure:
    return Measure(evaluation, label_col="label", labels=tuple(labels))


def states_of(measure: Measure, rows: pa.Table, cuts: Sequence[int] = ()) -> list[States]:
    """Returns the states of parts of some rows, as they are recorded."""
    states = []
    ends = [*cuts, rows.num_rows]
    for start, end in zip([0, *cuts], ends, strict=True):
        measuring = measure.start()
        for batch in rows.slice(start, end - start).to_batches(max_chunksize=50):
            measuring.add(batch)
        states.append(json.loads(json.dumps(measuring.states())))
    return states


def values(measure: Measure, rows: pa.Table, cuts: Sequence[int] = ()) -> dict[str, float]:
    return measure.values(states_of(measure, rows, cuts)).metrics


def problem(measure: Measure, rows: pa.Table) -> str | None:
    measured: Measured = measure.values(states_of(measure, rows))
    return measured.problem


SCORE = measure_of(TextEvaluation(), ["score"])


def scored_numbers(found: Any, labels: Any, kind: pa.DataType | None = None) -> pa.Table:
    numbers = [None if one is None else [one] for one in found]
    return pa.table(
        {
            "label": pa.array(labels, kind),
            "prediction": pa.nulls(len(numbers), pa.string()),
            "probabilities": pa.array(numbers, pa.list_(pa.float32())),
        }
    )


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("cuts", [(), (1, 1, 7, 400, 999)])
def test_errors_and_correlation_are_those_of_scikit_learn_and_scipy(
    offset: float, cuts: tuple[int, ...]
) -> None:
    draw = np.random.default_rng(3)
    true = draw.normal(3, 2, 1000) + offset
    found = (true + draw.normal(0, 1, 1000)).astype(np.float32)
    measured = values(SCORE, scored_numbers(found.tolist(), true), cuts)
    as_doubles = found.astype(np.float64)
    assert measured.pop("labelled_rows") == 1000
    assert measured.pop("unknown_labels") == 0
    assert measured == pytest.approx(
        {
            "mae": mean_absolute_error(true, as_doubles),
            "rmse": mean_squared_error(true, as_doubles) ** 0.5,
            "pearson": pearsonr(true, as_doubles).statistic,
        },
        rel=1e-9,
    )


def test_parts_in_any_order_give_the_values_of_the_whole() -> None:
    rows = scored_numbers(np.linspace(0, 1, 300) ** 2, range(300))
    states = states_of(SCORE, rows, (3, 90, 91))
    whole = values(SCORE, rows)
    for order in ([3, 0, 2, 1], [1, 2, 0, 3]):
        parts = [states[i] for i in order]
        assert SCORE.values(parts).metrics == pytest.approx(whole, rel=1e-12)
        twice = [SCORE.add_up(parts[:2]), SCORE.add_up(parts[2:])]
        assert SCORE.values(twice).metrics == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([1, 0, None, 3], pa.int8()),
        pa.array([1.0, 0.0, float("nan"), 3.0], pa.float32()),
        pa.array(["1", " 0.0", "", "3e0"]),
        pa.array(["1", "false", "nan", "+3"]).dictionary_encode(),
    ],
)
def test_a_number_means_the_same_however_it_is_stored(labels: pa.Array) -> None:
    found = values(SCORE, scored_numbers([1.5, 0.5, 9.0, 2.0], labels))
    assert (found["labelled_rows"], found["unknown_labels"]) == (3, 0)
    assert found["mae"] == pytest.approx(2 / 3)


def test_booleans_are_numbers() -> None:
    found = values(SCORE, scored_numbers([0.75, 0.25], [True, False]))
    assert (found["mae"], found["rmse"]) == (0.25, 0.25)
    assert found["pearson"] == pytest.approx(1)


def test_what_is_no_number_is_counted_apart_and_rows_without_one_nowhere() -> None:
    labels = ["2", "good", "inf", "1_0", None, "4"]
    found = values(SCORE, scored_numbers([1.0, 1, 1, 1, 1, None], labels))
    assert (found["labelled_rows"], found["unknown_labels"], found["mae"]) == (1, 3, 1)
    assert "pearson" not in found
    only_words = scored_numbers([1.0, 1.0, 1.0], ["good", "bad", None])
    said = problem(SCORE, only_words)
    assert said == (
        "label_col='label': none of 2 labels, such as 'bad', 'good', is a number, which is what "
        "this model gives"
    )


@pytest.mark.parametrize("same", ["labels", "numbers"])
def test_the_correlation_with_what_never_changes_is_left_out(same: str) -> None:
    constant, changing = [0.1] * 100, np.linspace(0, 1, 100).tolist()
    found, true = (changing, constant) if same == "labels" else (constant, changing)
    assert "pearson" not in values(SCORE, scored_numbers(found, true), (3, 50))


def test_a_regression_with_several_outputs_has_the_row_counts_alone() -> None:
    rows = pa.table(
        {
            "label": [0.0, 1.0],
            "prediction": pa.nulls(2, pa.string()),
            "probabilities": pa.array([[1, 2], [3, 4]], pa.list_(pa.float32())),
        }
    )
    measured = values(measure_of(TextEvaluation(), ["x", "y"]), rows)
    assert measured == {"labelled_rows": 0, "unknown_labels": 0}


ENTITIES = measure_of(EntityEvaluation(), ["O", "B-PER"])
Spans = list[tuple[str, int, int]]


def as_dicts(spans: Spans) -> list[dict[str, Any]]:
    return [dict(zip(("entity", "start", "end"), span, strict=True)) for span in spans]


def scored_entities(found: list[Spans | None], labels: pa.Array) -> pa.Table:
    entities = [
        None if spans is None else [{**one, "score": 0.5, "word": "x"} for one in as_dicts(spans)]
        for spans in found
    ]
    return pa.table({"label": labels, "entities": pa.array(entities, pa.list_(ENTITY))})


def random_spans(rows: int, seed: int) -> list[Spans]:
    draw = random.Random(seed)

    def span() -> tuple[str, int, int]:
        start = draw.randrange(4) * 3
        return draw.choice(["PER", "LOC", "ORG"]), start, start + draw.choice([2, 3])

    return [list({span() for _ in range(draw.randrange(5))}) for _ in range(rows)]


def seqeval(true: list[Spans], found: list[Spans]) -> dict[str, float]:
    """Returns what seqeval does by default: micro, each entity exactly."""
    all_true = {(row, *span) for row, spans in enumerate(true) for span in spans}
    all_found = {(row, *span) for row, spans in enumerate(found) for span in spans}
    right = len(all_true & all_found)
    precision, recall = right / len(all_found), right / len(all_true)
    f1 = 2 * precision * recall / (precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1}


@pytest.mark.parametrize("cuts", [(), (1, 1, 60, 333)])
@pytest.mark.parametrize("as_json", [False, True])
def test_entities_are_counted_as_by_seqeval(cuts: tuple[int, ...], as_json: bool) -> None:
    true, found = random_spans(400, seed=1), random_spans(400, seed=2)
    dicts = [as_dicts(spans) for spans in true]
    labels = pa.array([json.dumps(one) for one in dicts] if as_json else dicts)
    measured = values(ENTITIES, scored_entities(list(found), labels), cuts)
    assert measured.pop("labelled_rows") == 400
    assert measured.pop("unknown_labels") == 0
    assert measured == pytest.approx(seqeval(true, found), rel=1e-12)
    assert 0.05 < measured["f1"] < 0.95


def test_labels_that_hold_no_entities_are_counted_apart() -> None:
    per = '[{"entity": "PER", "start": 0, "end": 2, "more": 1}]'
    unreadable = ["PER", "{}", '[{"entity": "PER"}]', '[["PER", 0, 2]]', per.replace("2", "2.5")]
    labels = pa.array([per, "[]", *unreadable, "", None, per])
    found: list[Spans | None] = [[("PER", 0, 2)]] * 9 + [None]
    measured = values(ENTITIES, scored_entities(found, labels))
    assert (measured["labelled_rows"], measured["unknown_labels"]) == (2, 5)
    assert (measured["precision"], measured["recall"]) == (0.5, 1)
    said = problem(ENTITIES, scored_entities([[], []], pa.array(["PER", None])))
    assert said is not None
    assert "none of 1 labels, such as 'PER', is a list of entities, each with entity, start" in said


def test_without_entities_to_divide_by_values_are_left_out() -> None:
    nothing = values(ENTITIES, scored_entities([[]], pa.array(["[]"])))
    assert nothing == {"labelled_rows": 1, "unknown_labels": 0}
    none_found = values(
        ENTITIES, scored_entities([[]], pa.array([json.dumps(as_dicts([("PER", 0, 1)]))]))
    )
    assert none_found == {"labelled_rows": 1, "unknown_labels": 0, "recall": 0, "f1": 0}


def test_entities_without_a_place_are_not_measured() -> None:
    rows = scored_entities([[("PER", 0, 1)], [("PER", None, None)]], pa.array(["[]", "[]"]))  # type: ignore[list-item]
    assert values(ENTITIES, rows) == {"labelled_rows": 2, "unknown_labels": 0}


@pytest.mark.parametrize(
    ("kind", "is_read"),
    [
        (pa.string(), True),
        (pa.dictionary(pa.int32(), pa.string()), True),
        (pa.list_(ENTITY), True),
        (
            pa.large_list(
                pa.struct([("end", pa.int64()), ("start", pa.int64()), ("entity", pa.string())])
            ),
            True,
        ),
        (pa.list_(pa.string()), False),
        (pa.list_(pa.struct([("entity", pa.string()), ("start", pa.int32())])), False),
        (pa.int64(), False),
    ],
)
def test_which_columns_may_hold_entities(kind: pa.DataType, is_read: bool) -> None:
    assert EntityEvaluation().reads(kind) is is_read
    assert TextEvaluation().reads(kind) is (
        kind in (pa.int64(), pa.string()) or "dict" in str(kind)
    )


def test_labels_of_the_users_are_measured_as_by_scikit_learn() -> None:
    names = ["politics", "sports", "weather"]
    draw = np.random.default_rng(0)
    scores = draw.dirichlet([1, 1, 1], 200).astype(np.float32)
    true = draw.integers(0, 3, 200)
    order = np.argsort(scores, axis=1)[:, ::-1]
    rows = pa.table(
        {
            "label": [names[one].upper() for one in true],
            "prediction": [names[one] for one in order[:, 0]],
            "labels": [[names[one] for one in row] for row in order],
            "scores": pa.array(
                np.take_along_axis(scores, order, 1).tolist(), pa.list_(pa.float32())
            ),
        }
    )
    measured = values(measure_of(ZeroShotEvaluation(), names), rows, (3, 120))
    found = scores.argmax(axis=1)
    assert measured["accuracy"] == pytest.approx(accuracy_score(true, found))
    assert measured["f1_macro"] == pytest.approx(f1_score(true, found, average="macro"))
    assert measured["log_loss"] == pytest.approx(
        log_loss(true, scores.astype(np.float64) / scores.sum(1, dtype=np.float64)[:, None]),
        rel=1e-5,
    )
