from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.metrics import classification
from sparkinfer.metrics.base import Metric
from sparkinfer.metrics.classification import ClassificationEvaluation, LabelledRows
from sparkinfer.metrics.labels import LabelsSeen, label_names
from sparkinfer.metrics.measure import Measure, States, check_metrics

TWO = ("NEGATIVE", "POSITIVE")
FIVE = ("a", "b", "c", "d", "e")
ALL = {
    "accuracy", "f1_macro", "log_loss", "auc_roc", "auc_roc_bound", "calibration_error",
    "labelled_rows", "unknown_labels",
}  # fmt: skip


def measure_of(names: Sequence[str], user: Sequence[str] = (), **options: Any) -> Measure:
    options = {"label_col": "label", **options}
    return Measure(
        ClassificationEvaluation(), labels=tuple(names), user_metrics=tuple(user), **options
    )


def check(user: Sequence[str]) -> None:
    check_metrics(user, ClassificationEvaluation())


def make_metrics(names: Sequence[str], user: Sequence[str] = ()) -> list[Metric]:
    return measure_of(names, user).metrics()


def measure(
    names: Sequence[str], paths: Sequence[str], user: Sequence[str] = (), **options: Any
) -> States:
    """Returns the states of some files."""
    measuring = measure_of(names, user, **options).start()
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches():
            measuring.add(batch)
    return measuring.states()


def combine(
    names: Sequence[str], states: Sequence[Mapping[str, Any]], user: Sequence[str] = ()
) -> dict[str, float]:
    return measure_of(names, user).values(states).metrics


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """As transformers computes it."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def sample(rows: int, num_labels: int, margin: float = 6.0, seed: int = 0) -> LabelledRows:
    """Rows of a fine-tuned model: at a margin of 6, most probabilities are near 0 or 1."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_labels, rows)
    logits = random.normal(0, 2, (rows, num_labels)).astype(np.float32)
    logits[np.arange(rows), labels] += np.float32(margin)
    return of_probabilities(labels, softmax(logits))


def of_probabilities(labels: Any, probabilities: Any) -> LabelledRows:
    probabilities = np.asarray(probabilities, np.float32)
    return LabelledRows(np.asarray(labels, np.int64), probabilities.argmax(axis=1), probabilities)


def values_of(rows: LabelledRows, names: Sequence[str]) -> dict[str, float]:
    return combine(names, [states_of(rows, names)])


def sums_of(rows: LabelledRows, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the state of each metric."""
    made = make_metrics(names, ())
    for metric in made:
        metric.update(rows)
    return {metric.name: metric.state() for metric in made}


def states_of(rows: LabelledRows, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the states of rows whose labels are given by name."""
    seen = LabelsSeen(names)
    seen.add(pa.array([names[label] for label in rows.labels], pa.string()))
    sums = {name: {"names": state} for name, state in sums_of(rows, names).items()}
    return {"labels": seen.state(), **sums}


def group(states: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Returns the sums of one group."""
    return {metric: groups[name] for metric, groups in states.items() if metric != "labels"}


def part(rows: LabelledRows, which: slice) -> LabelledRows:
    return LabelledRows(rows.labels[which], rows.predictions[which], rows.probabilities[which])


def write(
    path: Path,
    rows: LabelledRows,
    names: Sequence[str],
    labels: pa.Array | None = None,
    errors: Sequence[int] = (),
    prefix: str = "",
) -> str:
    """Writes a scored file; rows in `errors` have no prediction."""
    failed = np.isin(np.arange(len(rows.labels)), errors)
    predictions = [None if f else names[i] for i, f in zip(rows.predictions, failed, strict=True)]
    lists = [None if f else p for p, f in zip(rows.probabilities.tolist(), failed, strict=True)]
    columns = {
        "text": pa.array(["x"] * len(failed), pa.string()),
        "label": pa.array(rows.labels) if labels is None else labels,
        prefix + "prediction": pa.array(predictions, pa.string()),
        prefix + "probability": pa.array([0.0] * len(failed), pa.float32()),
        prefix + "probabilities": pa.array(lists, pa.list_(pa.float32())),
        prefix + "error": pa.array(["bad" if f else None for f in failed], pa.string()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return str(path)


def sklearn_log_loss(rows: LabelledRows, num_labels: int) -> float:
    with warnings.catch_warnings():
        # The sums of float32 rows are farther from 1 than float64 rounds.
        warnings.filterwarnings("ignore", "The y_pr.* values do not sum to one", UserWarning)
        p = rows.probabilities.astype(np.float64)
        return float(log_loss(rows.labels, p, labels=range(num_labels)))


def sklearn_auc(rows: LabelledRows, num_labels: int) -> float:
    if num_labels == 2:
        return float(roc_auc_score(rows.labels, rows.probabilities[:, 1]))
    return float(roc_auc_score(rows.labels, rows.probabilities, multi_class="ovr"))


def calibration_error(rows: LabelledRows) -> float:
    """Guo et al. 2017, equation 3, as it stands there."""
    confidence = rows.probabilities.max(axis=1).astype(np.float64)
    right = rows.predictions == rows.labels
    error = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.sum() / len(right) * gap
    return error


# The values


@pytest.mark.parametrize("margin", [0.5, 3.0, 6.0, 12.0])
@pytest.mark.parametrize("names", [TWO, FIVE])
def test_values_are_those_of_scikit_learn(
    tmp_path: Path, names: Sequence[str], margin: float
) -> None:
    rows = sample(2003, len(names), margin)
    path = write(tmp_path / "a.parquet", rows, names)
    found = combine(names, [measure(names, [path])])
    assert set(found) == ALL
    assert found["accuracy"] == pytest.approx(accuracy_score(rows.labels, rows.predictions))
    macro = f1_score(rows.labels, rows.predictions, average="macro")
    assert found["f1_macro"] == pytest.approx(macro, rel=1e-12)
    assert found["log_loss"] == pytest.approx(sklearn_log_loss(rows, len(names)), abs=1e-6)
    assert found["calibration_error"] == pytest.approx(calibration_error(rows), rel=1e-9)
    assert abs(found["auc_roc"] - sklearn_auc(rows, len(names))) <= found["auc_roc_bound"] + 1e-12
    assert (found["labelled_rows"], found["unknown_labels"]) == (2003, 0)


@pytest.mark.parametrize("names", [TWO, FIVE])
def test_bound_of_the_auc_is_small_for_sharp_probabilities(names: Sequence[str]) -> None:
    rows = sample(20_000, len(names))
    assert np.mean(np.abs(rows.probabilities - 0.5) > 0.49) > 0.5  # they are sharp
    found = values_of(rows, names)
    assert 0 < found["auc_roc_bound"] < 1e-3
    assert 0.9 < found["auc_roc"] < 1


def test_macro_f1_is_over_labels_in_truth_or_prediction() -> None:
    names = ("a", "b", "c", "d", "e", "f")
    truth, predicted = [0, 0, 1, 1, 4], [0, 1, 1, 2, 0]  # c only predicted, e only true, d, f none
    rows = LabelledRows(
        np.array(truth), np.array(predicted), np.full((5, 6), 1 / 6, dtype=np.float32)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = f1_score(truth, predicted, average="macro")
    assert values_of(rows, names)["f1_macro"] == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)


def test_log_loss_of_probability_zero_is_clipped_as_by_scikit_learn() -> None:
    rows = of_probabilities([0, 1, 1], [[0.0, 1.0], [0.0, 1.0], [0.25, 0.75]])
    found = values_of(rows, TWO)["log_loss"]
    assert found == pytest.approx(sklearn_log_loss(rows, 2), rel=1e-9)
    assert found > 12  # a third of -log(eps) of float64


def test_full_confidence_is_in_the_last_bin_of_the_calibration() -> None:
    rows = of_probabilities([1] * 4, [[0, 1]] * 3 + [[1, 0]])
    assert values_of(rows, TWO)["calibration_error"] == pytest.approx(0.25)


def test_confidence_on_an_edge_is_in_the_bin_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "CALIBRATION_BINS", 4)  # edges of 15 are no float32 numbers
    rows = of_probabilities([0] * 4, [[0.5, 0.5], [0.75, 0.25], [0.76, 0.24], [1.0, 0.0]])
    assert sums_of(rows, TWO)["calibration"]["rows"] == [0, 1, 1, 2]


def test_auc_tells_probabilities_apart_near_both_ends() -> None:
    for low, high in [(1e-9, 3e-9), (1e-6, 1.1e-6), (1 - 3e-7, 1 - 1e-7), (0.5, 0.52)]:
        rows = of_probabilities([0, 1], [[1 - low, low], [1 - high, high]])
        found = values_of(rows, TWO)
        assert (found["auc_roc"], found["auc_roc_bound"]) == (1.0, 0.0)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=50))
def test_bins_rise_with_the_probability(values: list[float]) -> None:
    for parts_log2 in (0, 3, 6):
        bins = classification._bins(np.sort(np.array(values, np.float32)), parts_log2)
        assert (np.diff(bins) >= 0).all()
        assert bins.min() >= 0
        assert bins.max() < 64 << parts_log2


def test_the_grid_reaches_from_its_first_bin_to_its_last() -> None:
    ends = np.array([0.0, 1e-38, 2**-41, np.nextafter(0.5, 0, dtype=np.float32), 0.5, 1.0])
    expected = [0, 0, 0, 40 * 64 - 1, 40 * 64, 64 * 64 - 1]
    assert classification._bins(ends.astype(np.float32), 6).tolist() == expected


def test_rows_of_one_bin_tie_and_the_bound_is_attained() -> None:
    p = np.array([0.6, np.nextafter(np.float32(0.6), np.float32(1))], np.float32)
    for labels, true in [([0, 1], 1.0), ([1, 0], 0.0)]:
        rows = of_probabilities(labels, np.stack([1 - p, p], axis=1))
        found = values_of(rows, TWO)
        assert sklearn_auc(rows, 2) == true
        assert (found["auc_roc"], found["auc_roc_bound"]) == (0.5, 0.5)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=2, max_size=60))
def test_auc_is_within_its_bound_for_any_probabilities(pairs: list[tuple[bool, float]]) -> None:
    labels = [int(label) for label, _ in pairs]
    rows = of_probabilities(labels, [[1 - p, p] for _, p in pairs])
    found = values_of(rows, TWO)
    if len(set(labels)) == 1:
        assert "auc_roc" not in found
    else:
        assert abs(found["auc_roc"] - sklearn_auc(rows, 2)) <= found["auc_roc_bound"] + 1e-12


# Values that are not defined


def test_auc_is_left_out_where_a_label_has_no_rows_or_all() -> None:
    rows = sample(300, 5)
    without = part(rows, np.flatnonzero(rows.labels != 3))  # type: ignore[arg-type]
    assert set(values_of(without, FIVE)) == ALL - {"auc_roc", "auc_roc_bound"}
    rows = sample(300, 2)
    one = part(rows, np.flatnonzero(rows.labels == 1))  # type: ignore[arg-type]
    assert set(values_of(one, TWO)) == ALL - {"auc_roc", "auc_roc_bound"}


OF_LABELS = {"accuracy", "f1_macro", "labelled_rows", "unknown_labels"}


@pytest.mark.parametrize("strange", [[0.9, 0.9], [-0.5, 1.5], [np.nan, 1.0], [0.2, 0.5]])
def test_one_row_that_is_no_distribution_leaves_out_what_needs_them(strange: list[float]) -> None:
    rows = of_probabilities([0, 1, 1], [[0.9, 0.1], strange, [0.2, 0.8]])
    parts = [states_of(part(rows, slice(i, i + 1)), TWO) for i in range(3)]
    assert set(combine(TWO, parts)) == OF_LABELS
    assert set(combine(TWO, [parts[0], parts[2]])) == ALL


def test_softmax_of_many_labels_in_float32_is_a_distribution() -> None:
    names = [str(i) for i in range(1000)]
    rows = sample(4000, len(names), margin=1)
    assert set(values_of(rows, names)) >= {"log_loss", "calibration_error", "accuracy"}


def test_one_label_gives_the_row_counts_alone() -> None:
    rows = of_probabilities([0, 0], [[0.3], [0.9]])
    assert values_of(rows, ["score"]) == {"labelled_rows": 2, "unknown_labels": 0}


def test_names_that_repeat_are_one_label_and_have_no_probabilities(tmp_path: Path) -> None:
    names = ("x", "y", "x")
    rows = of_probabilities([2, 0, 1, 1], [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]] * 2)
    found = combine(names, [measure(names, [write(tmp_path / "a.parquet", rows, names)])])
    assert set(found) == OF_LABELS
    assert found["accuracy"] == 0.5


# Merging


def ints_and_floats(states: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], list[float]]:
    """Exact parts by name, and the float sums."""
    floats = [states["log_loss"]["loss"], *states["calibration"]["confidence"]]
    exact = {
        f"{name}.{key}": value
        for name, state in states.items()
        for key, value in state.items()
        if (name, key) not in {("log_loss", "loss"), ("calibration", "confidence")}
    }
    return exact, floats


@given(
    names=st.sampled_from([TWO, FIVE]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    shuffle=st.randoms(use_true_random=False),
)
@settings(max_examples=30)
def test_chunks_in_any_order_give_the_state_of_one_pass(
    names: Sequence[str], cuts: list[int], shuffle: Any
) -> None:
    rows = sample(400, len(names), margin=2)
    edges = [0, *sorted(cuts), 400]
    chunks = [states_of(part(rows, slice(*pair)), names) for pair in itertools.pairwise(edges)]
    shuffle.shuffle(chunks)
    merged = make_metrics(names, ())
    for chunk in chunks:
        for metric in merged:
            metric.merge(json.loads(json.dumps(chunk))[metric.name]["names"])
    exact, floats = ints_and_floats({metric.name: metric.state() for metric in merged})
    expected_exact, expected_floats = ints_and_floats(sums_of(rows, names))
    assert exact == expected_exact
    assert floats == pytest.approx(expected_floats, rel=1e-12)
    whole = combine(names, [states_of(rows, names)])
    assert combine(names, chunks) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("max_rows", [1, 7, 2**16])
def test_states_do_not_depend_on_how_a_file_is_read(
    tmp_path: Path, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sample(300, 5)
    path = write(tmp_path / "a.parquet", rows, FIVE)
    monkeypatch.setattr(classification, "MAX_BATCH_ROWS", max_rows)
    exact, floats = ints_and_floats(group(measure(FIVE, [path]), "ids"))
    expected_exact, expected_floats = ints_and_floats(sums_of(rows, FIVE))
    assert exact == expected_exact
    assert floats == pytest.approx(expected_floats, rel=1e-12)


def test_several_files_are_one_chunk(tmp_path: Path) -> None:
    rows = sample(300, 2)
    cuts = [slice(0, 100), slice(100, 101), slice(101, 300)]
    paths = [write(tmp_path / f"{c.start}.parquet", part(rows, c), TWO) for c in cuts]
    exact, _ = ints_and_floats(group(measure(TWO, paths), "ids"))
    assert exact == ints_and_floats(sums_of(rows, TWO))[0]


def shapes_in(states: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{name}.{key}": value["shape"] if isinstance(value, dict) else np.shape(value)
        for name, state in states.items()
        for key, value in state.items()
    }


def test_a_state_survives_json_and_does_not_grow_with_rows() -> None:
    few, many = (states_of(sample(rows, 5, 2.0), FIVE) for rows in (5000, 200_000))
    assert json.loads(json.dumps(many)) == many
    assert shapes_in(group(few, "names")) == shapes_in(group(many, "names"))
    assert len(json.dumps(many)) < 50_000


def test_the_size_of_a_state_does_not_explode_with_labels() -> None:
    names = [f"label {i}" for i in range(300)]
    state = sums_of(sample(2000, 300), names)
    assert state["auc_roc"]["rows"]["shape"] == [2, 300, 64]
    assert len(json.dumps(state)) < 100_000


def test_an_array_is_packed_as_documented() -> None:
    rows = LabelledRows(np.array([0, 1, 1]), np.array([1, 1, 1]), np.full((3, 2), 0.5, np.float32))
    packed = sums_of(rows, TWO)["confusion"]["matrix"]
    data = zlib.decompress(base64.b64decode(packed["data"]))
    assert packed["shape"] == [2, 2]
    assert np.frombuffer(data, "<i8").tolist() == [0, 1, 0, 2]


def test_a_state_of_other_labels_is_refused() -> None:
    with pytest.raises(JobError, match=r"shape \(2, 2\), expected \(5, 5\)"):
        combine(FIVE, [states_of(sample(10, 2), TWO)])


def test_a_metric_that_a_chunk_was_not_measured_for_is_left_out() -> None:
    state = states_of(sample(200, 2), TWO)
    partly = {name: value for name, value in state.items() if name != "confusion"}
    assert set(combine(TWO, [state, partly])) == ALL - {"accuracy", "f1_macro"}
    assert combine(TWO, [state, {}]) == {}


# Reading labels


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([1, 0, 1, None], pa.int64()),
        pa.array([1, 0, 1, None], pa.uint8()),
        pa.array(["1", "0", "1", None]),
        pa.array(["POSITIVE", "NEGATIVE", "POSITIVE", None]),
        pa.array(["POSITIVE", "0", "1", None], pa.large_string()),
        pa.array([True, False, True, None]),
        pa.array([1.0, -0.0, 1.0, None], pa.float32()),
        pa.array([1.0, 0.0, 1.0, float("nan")], pa.float64()),
        pa.array(["POSITIVE", "NEGATIVE", "POSITIVE", None]).dictionary_encode(),
        pa.array([1, 0, 1, None]).dictionary_encode(),
    ],
    ids=lambda labels: str(labels.type),
)
def test_labels_are_ids_digits_names_booleans_or_whole_numbers(
    tmp_path: Path, labels: pa.Array
) -> None:
    rows = of_probabilities([0] * 4, [[0.1, 0.9], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    path = write(tmp_path / "a.parquet", rows, TWO, labels)
    assert confusion(TWO, [measure(TWO, [path])]) == [[1, 0], [1, 1]]


def confusion(names: Sequence[str], states: Sequence[States]) -> list[list[int]]:
    """Returns rows by label and prediction, both of the model's labels."""
    adding = measure_of(names).adding()
    for state in states:
        adding.add(state)
    total = adding._total
    assert total is not None
    metrics = {metric.name: metric for metric in total.counted(make_metrics(names))}
    value = metrics["confusion"].state()["matrix"]
    data = zlib.decompress(base64.b64decode(value["data"]))
    counts: list[list[int]] = np.frombuffer(data, "<i8").reshape(value["shape"]).tolist()
    return counts


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["1", "neutral", "positiv", None]),
        pa.array(["POSITIVE", "neutral", "01", "  "]),
        pa.array(["positive", "1 ?", "-", "NaN"]),
        pa.array(["1", "x", "y", None]).dictionary_encode(),
    ],
    ids=lambda labels: str(labels.type),
)
def test_labels_that_are_none_of_the_models_are_counted_apart(
    tmp_path: Path, labels: pa.Array
) -> None:
    rows = of_probabilities([0] * 4, [[0.1, 0.9]] * 4)
    path = write(tmp_path / "a.parquet", rows, TWO, labels)
    found = combine(TWO, [measure(TWO, [path])])
    assert (found["labelled_rows"], found["unknown_labels"]) == (1, 2)
    assert found["accuracy"] == 1


STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")


def readings(names: Sequence[str], *columns: pa.Array) -> list[int | None]:
    """Returns the id of each label of a column whose parts are seen by different workers."""
    total, reader = LabelsSeen(names), label_names(tuple(names))
    for column in columns:
        seen = LabelsSeen(names)
        seen.add(column)
        total.merge(json.loads(json.dumps(seen.state())))
    ids: list[int | None] = []
    for column in columns:
        found: list[int | None] = [None] * len(column)
        for name, rows, of_group in reader.read(column).groups():
            for row in np.flatnonzero(rows) if name in total.groups() else ():
                found[row] = None if of_group[row] < 0 else int(of_group[row])
        ids += found
    return ids


SAME = [
    pa.array([1, 0, 1, None], pa.int8()),
    pa.array([1.0, 0.0, 1.0, None]),
    pa.array([True, False, True, None]),
    pa.array(["1", "0", "1", ""]),
    pa.array(["1.0", "0.0", " 1.", "nan"]),
    pa.array(["True", "False", "true", None]),
    pa.array(["1e0", "-0", "TRUE ", " "]),
    pa.array(["Positive", " negative", "POSITIVE  ", None]),
    pa.array(["positive", "0", "true", None]),
]


@pytest.mark.parametrize("column", SAME, ids=str)
def test_a_label_means_the_same_however_it_is_stored(column: pa.Array) -> None:
    assert readings(TWO, column) == [1, 0, 1, None]


@pytest.mark.parametrize("kind", [pa.int32(), pa.float64(), pa.string()], ids=str)
@pytest.mark.parametrize(
    ("names", "labels", "ids"),
    [
        (STARS, [1, 5, 3], [0, 4, 2]),
        (STARS, [0, 4, 3], [0, 4, 3]),  # not ratings: there is a 0
        (STARS, [0, 5, 3], [None, 4, 2]),  # not ids: there is a 5
        (("N/A", *STARS), [1, 2], [1, 2]),
        ((*STARS, "N/A"), [1, 5], [0, 4]),
        (("1", "2", "3"), [1, 3], [0, 2]),
        (("1", "2", "3"), [0, 2], [0, 2]),
        (("LABEL_0", "LABEL_1"), [1, 0], [1, 0]),
        (("true", "false"), [1, 0], [0, 1]),
        (("18-24", "25-34"), [1, 0], [1, 0]),
        (("-1", "0", "1"), [-1, 0, 1], [0, 1, 2]),
        (TWO, [1, 2], [None, None]),
        (TWO, [1, -1], [None, None]),
    ],
)
def test_numbers_are_those_in_the_names_or_else_ids(
    names: Sequence[str], labels: list[int], ids: list[int | None], kind: pa.DataType
) -> None:
    column = pa.array(labels).cast(kind)
    assert readings(names, column) == ids
    assert readings(names, *(column.slice(i, 1) for i in range(len(labels)))) == ids


def test_numbers_that_are_no_ids_are_known_by_no_number_of_a_fraction() -> None:
    assert readings(TWO, pa.array([1.0, 0.5])) == [None, None]
    assert readings(TWO, pa.array([1.0, 1e300])) == [None, None]


def test_case_counts_where_names_differ_in_nothing_else() -> None:
    names = ("us", "US", "uk")
    labels = pa.array(["us", "US", "Us", "UK"])
    assert readings(names, labels) == [0, 1, None, 2]


def test_a_boolean_is_the_label_of_that_name() -> None:
    assert readings(("False ", "TRUE"), pa.array([True, False])) == [1, 0]


def test_where_no_label_is_the_models_there_are_no_metrics_but_a_reason(tmp_path: Path) -> None:
    rows = sample(6, 2)
    values = ["good", "evil", "x" * 50, None, "good", "good"]
    path = write(tmp_path / "a.parquet", rows, TWO, pa.array(values))
    measured = measure_of(TWO, [USER]).values([measure(TWO, [path], [USER])])
    assert measured.metrics == {}
    assert measured.problem is not None
    shown = f"none of 5 labels, such as 'evil', 'good', '{'x' * 40}', is one of the model's"
    assert shown in measured.problem
    assert "'NEGATIVE', 'POSITIVE'" in measured.problem


def test_the_state_of_labels_is_bounded_and_the_same_in_any_order() -> None:
    names = [f"name {i}" for i in range(2000)]
    columns = [pa.array([f"{i:04d}!" * 20, f"{i % 7}"]) for i in range(500)]
    states = []
    for order in (columns, columns[::-1]):
        total = LabelsSeen(names)
        for column in order:
            seen = LabelsSeen(names)
            seen.add(column)
            total.merge(seen.state())
        states.append(total.state())
    assert states[0] == states[1]
    assert len(json.dumps(states[0])) < 500


def test_rows_with_an_error_count_nowhere(tmp_path: Path) -> None:
    rows = sample(20, 2)
    labels = pa.array(["what", *(str(i) for i in rows.labels[1:])])
    path = write(tmp_path / "a.parquet", rows, TWO, labels, errors=[0, 3, 19])
    kept = np.setdiff1d(np.arange(20), [0, 3, 19])
    found = combine(TWO, [measure(TWO, [path])])
    assert found == pytest.approx(values_of(part(rows, kept), TWO))  # type: ignore[arg-type]
    assert (found["labelled_rows"], found["unknown_labels"]) == (17, 0)


def test_columns_are_found_behind_the_prefix(tmp_path: Path) -> None:
    rows = sample(50, 2)
    path = write(tmp_path / "a.parquet", rows, TWO, prefix="m_")
    found = measure(TWO, [path], prefix="m_")
    assert ints_and_floats(group(found, "ids"))[0] == ints_and_floats(sums_of(rows, TWO))[0]


def test_without_what_it_takes_nothing_is_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", sample(50, 2), TWO)
    assert measure(TWO, [path], label_col=None) == {}
    assert measure((), [path]) == {}
    assert Measure(None, "label", labels=TWO).metrics() == []
    assert combine(TWO, []) == combine((), [{}]) == {}


def test_empty_files_count_no_rows(tmp_path: Path) -> None:
    nothing = part(sample(1, 2), slice(0, 0))
    path = write(tmp_path / "a.parquet", nothing, TWO, pa.array([], pa.int64()))
    none = measure(TWO, [path])
    assert combine(TWO, [none]) == {"labelled_rows": 0, "unknown_labels": 0}
    assert measure(TWO, []) == none
    some = states_of(sample(200, 2), TWO)
    assert combine(TWO, [none, some]) == combine(TWO, [some])
    assert measure_of(TWO).add_up([none, some]) == some


def test_rows_without_any_label_count_no_rows(tmp_path: Path) -> None:
    rows = sample(5, 2)
    path = write(tmp_path / "a.parquet", rows, TWO, pa.nulls(5, pa.int32()))
    found = combine(TWO, [measure(TWO, [path])])
    assert found == {"labelled_rows": 0, "unknown_labels": 0}


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", sample(5, 2), TWO)
    with pytest.raises(JobError, match="is not one of the model's 2 labels"):
        measure(("NEGATIVE?", "POSITIVE?"), [path])
    with pytest.raises(JobError, match="expected 3 numbers, one per label"):
        measure((*TWO, "NEUTRAL"), [path])


# User metrics


class PositiveShare:
    """A user's metric: the share of rows predicted as the last label."""

    name = "positive_share"

    def __init__(self, label_names: Sequence[str]) -> None:
        self.last, self.hits, self.rows = len(label_names) - 1, 0, 0

    def update(self, rows: LabelledRows) -> None:
        self.hits += int((rows.predictions == self.last).sum())
        self.rows += len(rows.predictions) + rows.unknown_labels

    def state(self) -> dict[str, Any]:
        return {"hits": self.hits, "rows": self.rows}

    def merge(self, state: Mapping[str, Any]) -> None:
        self.hits += state["hits"]
        self.rows += state["rows"]

    def compute(self) -> dict[str, float]:
        return {"share": self.hits / self.rows, "accuracy": 7.0, "none": float("nan")}


INSTANCE = PositiveShare(TWO)


class Bare:
    name = "bare"


class Nameless(PositiveShare):
    name = None  # type: ignore[assignment]


class Failing(PositiveShare):
    def __init__(self, label_names: Sequence[str]) -> None:
        label_names.index("neutral")


class Clashing(PositiveShare):
    name = "rows"


USER = f"{__name__}:PositiveShare"


def test_a_users_metric_is_measured_and_combined(tmp_path: Path) -> None:
    rows = sample(60, 2)
    cuts = (slice(0, 20), slice(20, 60))
    paths = [write(tmp_path / f"{c.start}.parquet", part(rows, c), TWO) for c in cuts]
    states = [measure(TWO, [path], [USER]) for path in paths]
    found = combine(TWO, states, [USER])
    assert found["share"] == pytest.approx(rows.predictions.mean())
    assert "none" not in found


def test_a_users_value_does_not_replace_a_built_in_one(tmp_path: Path) -> None:
    rows = sample(60, 2)
    path = write(tmp_path / "a.parquet", rows, TWO)
    found = combine(TWO, [measure(TWO, [path], [USER])], [USER])
    assert found["accuracy"] == accuracy_score(rows.labels, rows.predictions)
    assert found["positive_share.accuracy"] == 7.0


def test_a_users_metric_sees_the_rows_with_an_unknown_label(tmp_path: Path) -> None:
    rows = sample(4, 2)
    path = write(tmp_path / "a.parquet", rows, TWO, pa.array(["0", "1", "what", None]))
    state = measure(TWO, [path], [USER])["positive_share"]
    assert (state["ids"]["rows"], state["names"]["rows"]) == (2, 1)


NOT_LOADABLE = [
    ("PositiveShare", "such as 'my_metrics:TopTwoAccuracy'"),
    (":PositiveShare", "such as 'my_metrics:TopTwoAccuracy'"),
    ("json:", "such as 'my_metrics:TopTwoAccuracy'"),
    ("no_such_module_here:X", "ModuleNotFoundError: No module named 'no_such_module_here'"),
    (".metrics:X", "TypeError"),
    ("json:NoSuchClass", "AttributeError: module 'json' has no attribute 'NoSuchClass'"),
    ("json:dumps", "add update, state, merge, compute"),
    (f"{__name__}:Bare", "add update, state, merge, compute"),
    (f"{__name__}:INSTANCE", "name a class"),
]


@pytest.mark.parametrize(("path", "reason"), NOT_LOADABLE)
def test_a_users_metric_that_is_no_metric_class_is_an_error(path: str, reason: str) -> None:
    for attempt in (check, partial(make_metrics, TWO)):
        with pytest.raises(ConfigError) as caught:
            attempt([path])
        assert f"metric {path!r}: expected" in caught.value.message
        assert reason in caught.value.message


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (f"{__name__}:Failing", "raised ValueError: 'neutral' is not in list"),
        (f"{__name__}:Nameless", "expected a `name` that is a string, got None"),
    ],
)
def test_a_users_metric_that_does_not_fit_the_labels_is_an_error(path: str, reason: str) -> None:
    check([path])  # nothing is wrong with the class for labels yet unknown
    with pytest.raises(ConfigError) as caught:
        make_metrics(TWO, [path])
    assert f"metric {path!r}: expected" in caught.value.message
    assert reason in caught.value.message


@pytest.mark.parametrize("paths", [[USER, USER], [f"{__name__}:Clashing"]])
def test_two_metrics_of_one_name_are_an_error(paths: list[str]) -> None:
    for attempt in (check, partial(make_metrics, TWO)):
        with pytest.raises(ConfigError, match="more than one is called '(positive_share|rows)'"):
            attempt(paths)


def test_the_built_in_metrics_have_the_names_that_are_reserved() -> None:
    assert [metric.name for metric in make_metrics(FIVE)] == list(ClassificationEvaluation.names)


def test_the_module_needs_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, sparkinfer.metrics.measure, sparkinfer.metrics.classification;"
        "print(sorted({'torch', 'sklearn', 'pyspark', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
