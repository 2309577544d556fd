"""How good the predictions are, from sums that are taken per chunk and added up later.

Each metric keeps sums of a fixed size. A chunk's sums are measured on its published files and kept
with it as JSON, so a chunk that is scored again replaces its sums and one that a resumed run skips
keeps them: no row counts twice. The values are computed from the sums over all chunks.

What is left out, never NaN:

* a model with one label (regression, or a single sigmoid) gives the row counts alone, since its
  output names no label;
* `log_loss`, `calibration_error` and `auc_roc` need label names that differ (a prediction is
  stored by name) and rows that are distributions: numbers of at least 0 that sum to 1. One row
  that is none, as from a sigmoid per label or a regression, leaves them out for the whole run;
* `auc_roc` needs rows with and rows without each label, as scikit-learn's does;
* a metric that only some of the chunks were measured for.

In a state, an array of up to one dimension is a number or a list; one of more is packed as
`{"shape": [...], "data": base64(zlib(int64, little-endian, C order))}`.
"""

from __future__ import annotations

import base64
import importlib
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, JobError
from sparkinfer.storage import file_system

MAX_BATCH_ROWS = 2**16
MAX_BATCH_NUMBERS = 2**22
"""Most probabilities read at a time, 16 MiB; the arrays made from them are a few times that."""

SUM_TOLERANCE = 3.5e-4
"""How far from 1 a row of probabilities may sum. Source: scikit-learn, root of float32's eps."""

CALIBRATION_BINS = 15
"""Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 5."""

OCTAVES_BELOW_HALF = 40
OCTAVES_ABOVE_HALF = 24
"""The AUC's grid: halvings of p from 1/2 to 2**-40, and of 1 - p until float32 has no more."""


@dataclass(frozen=True)
class LabelledRows:
    """Rows that have a prediction and a label of the model, in the order of the file.

    Attributes:
        labels: true label ids, int64 (rows,).
        predictions: predicted label ids, int64 (rows,).
        probabilities: float32 (rows, num_labels).
        unknown_labels: rows beside these with a prediction and a label that is none of the
            model's.
    """

    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    unknown_labels: int = 0


class Metric(Protocol):
    """A mergeable metric; a user's is a class made with the label names by label id.

    Attributes:
        name: what its state is kept under; no two metrics share it.
    """

    name: str

    def update(self, rows: LabelledRows) -> None:
        """Adds rows; there may be none in a call."""

    def state(self) -> dict[str, Any]:
        """Returns what was added so far as JSON values, of a size that rows do not change."""

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the state of other rows, in whatever order states come."""

    def compute(self) -> dict[str, float]:
        """Returns values by name; empty where there is nothing to say."""


def check_metrics(user_metrics: Sequence[str]) -> None:
    """Raises ConfigError for classes that `make_metrics` would refuse, before labels are known."""
    classes = [_user_class(path) for path in user_metrics]
    _refuse_repeated([*BUILT_IN, *(kind.name for kind in classes if hasattr(kind, "name"))])


def make_metrics(label_names: Sequence[str], user_metrics: Sequence[str] = ()) -> list[Metric]:
    """Returns new metrics: the built-in ones that fit the labels, then the user's in order.

    Args:
        label_names: names by label id.
        user_metrics: classes as `package.module:ClassName`.

    Raises:
        ConfigError: a class cannot be loaded or is no metric, or two metrics share a name.
    """
    num_labels = len(label_names)
    metrics: list[Metric] = [RowCounts()]
    if num_labels > 1:
        metrics.append(Confusion(num_labels))
    if 1 < num_labels == len(set(label_names)):
        metrics += [LogLoss(), Calibration(), AucRoc(num_labels)]
    metrics += [_user_metric(path, label_names) for path in user_metrics]
    _refuse_repeated(metric.name for metric in metrics)
    return metrics


def measure(
    config: ScoringConfig,
    label_names: Sequence[str],
    paths: Sequence[str],
    user_metrics: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Returns the state of each metric over scored Parquet files, by the metric's name.

    Reads the columns of the label, the prediction and the probabilities once. Empty if no label
    column is configured, the model has no labels, or a file lacks one of the columns.

    Raises:
        ConfigError: see `make_metrics`.
        JobError: the files were not scored with a model of these labels.
    """
    if config.label_col is None or not label_names:
        return {}
    metrics = make_metrics(label_names, user_metrics)
    prefix = config.output_prefix
    columns = (config.label_col, prefix + "prediction", prefix + "probabilities")
    for path in paths:
        fs, name = file_system(path)
        with fs.open(name, "rb") as handle:
            file = pq.ParquetFile(handle)
            if not set(columns) <= set(file.schema_arrow.names):
                return {}
            for rows in _labelled_rows(file, columns, label_names):
                for metric in metrics:
                    metric.update(rows)
    return {metric.name: metric.state() for metric in metrics}


def combine(
    label_names: Sequence[str],
    states: Iterable[Mapping[str, Mapping[str, Any]]],
    user_metrics: Sequence[str] = (),
) -> dict[str, float]:
    """Returns the metrics' values over all chunks; all are finite.

    A metric that one of the chunks has no state of is left out, since its values would be those
    of a part of the rows. A user's value whose name is taken is given as `metric.value`.

    Args:
        label_names: names by label id.
        states: what `measure` returned for each chunk, in any order.
        user_metrics: as they were given to `measure`.

    Raises:
        ConfigError: see `make_metrics`.
        JobError: a state was measured for other labels.
    """
    values: dict[str, float] = {}
    chunks = list(states)
    if not chunks or not label_names:
        return values
    for metric in make_metrics(label_names, user_metrics):
        if not all(metric.name in chunk for chunk in chunks):
            continue
        for chunk in chunks:
            metric.merge(chunk[metric.name])
        for name, value in metric.compute().items():
            if math.isfinite(value):
                values[f"{metric.name}.{name}" if name in values else name] = float(value)
    return values


class _Sums:
    """A metric whose state is a few arrays that add up."""

    name: str

    def __init__(self, **sums: npt.NDArray[Any]) -> None:
        self._sums = sums

    def state(self) -> dict[str, Any]:
        """Returns the arrays by name; see the module for how."""
        return {key: _encoded(array) for key, array in self._sums.items()}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the arrays of another state.

        Raises:
            JobError: they have other shapes.
        """
        for key, array in self._sums.items():
            other = _decoded(state[key])
            if other.shape != array.shape:
                raise JobError(
                    f"state of metric {self.name!r}: {key!r} has shape {other.shape}, expected "
                    f"{array.shape}; it was measured for other labels, so score the chunk again"
                )
            array += other.astype(array.dtype)


class RowCounts(_Sums):
    """How many rows the other metrics are of."""

    name = "rows"

    def __init__(self) -> None:
        super().__init__(labelled=_zero_counts(), unknown=_zero_counts())

    def update(self, rows: LabelledRows) -> None:
        """Counts rows."""
        self._sums["labelled"] += len(rows.labels)
        self._sums["unknown"] += rows.unknown_labels

    def compute(self) -> dict[str, float]:
        """Returns both counts."""
        return {
            "labelled_rows": float(self._sums["labelled"]),
            "unknown_labels": float(self._sums["unknown"]),
        }


class Confusion(_Sums):
    """Accuracy and macro F1, from rows by true and predicted label."""

    name = "confusion"

    def __init__(self, num_labels: int) -> None:
        super().__init__(matrix=_zero_counts(num_labels, num_labels))

    def update(self, rows: LabelledRows) -> None:
        """Counts rows by label and prediction."""
        np.add.at(self._sums["matrix"], (rows.labels, rows.predictions), 1)

    def compute(self) -> dict[str, float]:
        """Returns both values.

        Macro F1 is the mean over the labels that occur in truth or predictions. None of them
        divides by zero, so it does not matter what a zero division would give.

        Source: `f1_score(average="macro")` of scikit-learn.
        """
        matrix = self._sums["matrix"]
        total = matrix.sum()
        if not total:
            return {}
        right = np.diagonal(matrix)
        occurrences = matrix.sum(axis=0) + matrix.sum(axis=1)
        there = occurrences > 0
        f1 = 2 * right[there] / occurrences[there]
        return {"accuracy": float(right.sum() / total), "f1_macro": float(f1.mean())}


class LogLoss(_Sums):
    """Mean of -log of the true label's probability (natural logarithm)."""

    name = "log_loss"

    def __init__(self) -> None:
        super().__init__(
            loss=np.zeros((), np.float64), rows=_zero_counts(), unusable=_zero_counts()
        )

    def update(self, rows: LabelledRows) -> None:
        """Adds the rows' losses.

        Source: `log_loss` of scikit-learn on float64: probabilities are clipped by its eps and
        not made to sum to 1 (releases before 1.5 did that; float32 rows then differ by 1e-7).
        """
        usable = _is_distribution(rows.probabilities)
        chosen = rows.probabilities[np.arange(len(usable)), rows.labels][usable]
        eps = np.finfo(np.float64).eps
        self._sums["loss"] -= np.log(np.clip(chosen.astype(np.float64), eps, 1 - eps)).sum()
        self._sums["rows"] += len(chosen)
        self._sums["unusable"] += len(usable) - len(chosen)

    def compute(self) -> dict[str, float]:
        """Returns the mean."""
        if self._sums["unusable"] or not self._sums["rows"]:
            return {}
        return {"log_loss": float(self._sums["loss"] / self._sums["rows"])}


class Calibration(_Sums):
    """Expected calibration error of the highest probability, over bins (lo, hi] of equal width."""

    name = "calibration"

    def __init__(self) -> None:
        super().__init__(
            rows=_zero_counts(CALIBRATION_BINS),
            right=_zero_counts(CALIBRATION_BINS),
            confidence=np.zeros(CALIBRATION_BINS, np.float64),
            unusable=_zero_counts(),
        )

    def update(self, rows: LabelledRows) -> None:
        """Adds rows to the bins of their highest probability."""
        usable = _is_distribution(rows.probabilities)
        top = rows.probabilities[usable].max(axis=1).astype(np.float64)
        right = (rows.labels == rows.predictions)[usable]
        # The product is exact: float32 has 24 bits, the factor four and float64 53.
        bins = np.clip(np.ceil(top * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1).astype(int)
        self._sums["rows"] += np.bincount(bins, minlength=CALIBRATION_BINS)
        self._sums["right"] += np.bincount(bins[right], minlength=CALIBRATION_BINS)
        self._sums["confidence"] += np.bincount(bins, weights=top, minlength=CALIBRATION_BINS)
        self._sums["unusable"] += len(usable) - len(top)

    def compute(self) -> dict[str, float]:
        """Returns the mean over rows of their bin's |share of right ones - mean confidence|."""
        total = self._sums["rows"].sum()
        if self._sums["unusable"] or not total:
            return {}
        gaps = np.abs(self._sums["right"] - self._sums["confidence"])
        return {"calibration_error": float(gaps.sum() / total)}


class AucRoc(_Sums):
    """Area under the ROC curve: of label 1 of two, else the mean of each label against the rest.

    Rows are counted on a fixed grid of probabilities, and those of one bin as tied. Each bin is an
    equal part of an octave, a halving of p below 1/2 and of 1 - p above; that is nearly uniform in
    the logit, exact in float32 and the same on every machine. Labels share the bins, 64 octaves of
    64 parts for up to four curves and fewer for more, so that a state stays small.

    Source: the area is the chance that a row of the label has a higher probability than one that
    is not, ties counting half (Mann-Whitney); `roc_auc_score(multi_class="ovr")` of scikit-learn.
    """

    name = "auc_roc"

    def __init__(self, num_labels: int) -> None:
        self._ids = np.arange(num_labels) if num_labels > 2 else np.array([1])
        self._parts_log2 = min(6, max(0, 8 - (len(self._ids) - 1).bit_length()))
        num_bins = (OCTAVES_BELOW_HALF + OCTAVES_ABOVE_HALF) << self._parts_log2
        super().__init__(
            rows=_zero_counts(2, len(self._ids), num_bins), unusable=_zero_counts()
        )  # rows: first those of the label, then the rest

    def update(self, rows: LabelledRows) -> None:
        """Counts rows by bin, once per curve."""
        usable = _is_distribution(rows.probabilities)
        counts = self._sums["rows"]
        _, num_curves, num_bins = counts.shape
        bins = _bins(rows.probabilities[usable][:, self._ids], self._parts_log2)
        is_other = rows.labels[usable, None] != self._ids
        cells = (is_other * num_curves + np.arange(num_curves)) * num_bins + bins
        counts += np.bincount(cells.ravel(), minlength=counts.size).reshape(counts.shape)
        self._sums["unusable"] += np.count_nonzero(~usable)

    def compute(self) -> dict[str, float]:
        """Returns the area, and the most by which it can differ from that without bins."""
        positives, negatives = self._sums["rows"].astype(np.float64)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        if self._sums["unusable"] or not pairs.all():
            return {}
        tied = positives * negatives
        won = positives * (negatives.cumsum(axis=1) - negatives) + tied / 2
        return {
            "auc_roc": float((won.sum(axis=1) / pairs).mean()),
            "auc_roc_bound": float((tied.sum(axis=1) / 2 / pairs).mean()),
        }


BUILT_IN = tuple(kind.name for kind in (RowCounts, Confusion, LogLoss, Calibration, AucRoc))


def _zero_counts(*shape: int) -> npt.NDArray[np.int64]:
    return np.zeros(shape, np.int64)


def _is_distribution(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Returns which rows are at least 0 everywhere and sum to 1, bool (rows,)."""
    total = probabilities.sum(axis=1, dtype=np.float64)
    near_one = np.abs(total - 1) <= SUM_TOLERANCE
    result: npt.NDArray[np.bool_] = near_one & (probabilities >= 0).all(axis=1)
    return result


def _bins(p: npt.NDArray[np.float32], parts_log2: int) -> npt.NDArray[np.int64]:
    """Returns the bin of each probability, int64, rising with it.

    The bits of a positive float32, read as an integer, rise with it: 8 of exponent, then 23 of
    mantissa, of which the first `parts_log2` cut each octave into equal parts.
    """
    p = np.clip(p, 0, 1)
    to_nearer_end = np.minimum(p, 1 - p)  # exact: 1 - p is for p from 1/2
    shift = 23 - parts_log2
    half = int(np.float32(0.5).view(np.int32)) >> shift
    depth = half - (to_nearer_end.view(np.int32) >> shift).astype(np.int64)
    middle = OCTAVES_BELOW_HALF << parts_log2
    last = ((OCTAVES_BELOW_HALF + OCTAVES_ABOVE_HALF) << parts_log2) - 1
    return np.clip(np.where(p < 0.5, middle - depth, middle + depth), 0, last)


def _encoded(array: npt.NDArray[Any]) -> Any:
    """Returns an array as JSON values; of more than one dimension only int64."""
    if array.ndim < 2:
        return array.tolist()
    data = zlib.compress(array.astype("<i8").tobytes())
    return {"shape": list(array.shape), "data": base64.b64encode(data).decode("ascii")}


def _decoded(value: Any) -> npt.NDArray[Any]:
    if not isinstance(value, Mapping):
        return np.asarray(value)
    data = zlib.decompress(base64.b64decode(value["data"]))
    return np.frombuffer(data, "<i8").reshape(value["shape"])


def _refuse_repeated(names: Iterable[str]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"metrics: more than one is called {repeated[0]!r}; name each class once and give it a "
            f"`name` of its own, other than {', '.join(BUILT_IN)}"
        )


def _user_class(path: str) -> Any:
    module, separator, class_name = path.partition(":")
    expected = f"metric {path!r}: expected an importable `package.module:ClassName`"
    if not (module and separator and class_name):
        raise ConfigError(f"{expected}, such as 'my_metrics:TopTwoAccuracy'")
    try:
        kind = getattr(importlib.import_module(module), class_name)
    except Exception as error:  # importing runs the user's code: anything may come
        raise ConfigError(
            f"{expected}, but got {type(error).__name__}: {error}; put the module where Python "
            "finds it or correct the name"
        ) from error
    methods = ("update", "state", "merge", "compute")
    lacking = [name for name in methods if not callable(getattr(kind, name, None))]
    if lacking or not isinstance(kind, type):
        raise ConfigError(
            f"{expected} with methods {', '.join(methods)}; it is {kind!r}"
            + (f", add {', '.join(lacking)}" if lacking else ", name a class")
        )
    return kind


def _user_metric(path: str, label_names: Sequence[str]) -> Metric:
    kind = _user_class(path)
    try:
        metric: Metric = kind(list(label_names))
    except Exception as error:  # as above
        raise ConfigError(
            f"metric {path!r}: expected a class that can be made with the label names, but "
            f"{list(label_names)[:8]} gave {type(error).__name__}: {error}; correct the class"
        ) from error
    if not isinstance(getattr(metric, "name", None), str):
        raise ConfigError(
            f"metric {path!r}: expected a `name` that is text, got "
            f"{getattr(metric, 'name', None)!r}; add it to the class"
        )
    return metric


def _labelled_rows(
    file: pq.ParquetFile, columns: tuple[str, str, str], label_names: Sequence[str]
) -> Iterator[LabelledRows]:
    """Yields the rows of a scored file, in its order and in parts of bounded size."""
    label, prediction, probabilities = columns
    names = pa.array(label_names, pa.string())
    max_rows = min(MAX_BATCH_ROWS, max(1, MAX_BATCH_NUMBERS // len(names)))
    for batch in file.iter_batches(max_rows, columns=list(columns)):
        scored = batch.filter(pc.is_valid(batch.column(prediction)))
        labels = _label_text(scored.column(label))
        ids = _label_ids(labels, names, is_text=_holds_text(scored.column(label).type))
        known = pc.is_valid(ids)
        yield LabelledRows(
            labels=ids.filter(known).to_numpy().astype(np.int64),
            predictions=_predicted_ids(scored.column(prediction).filter(known), names),
            probabilities=_matrix(scored.column(probabilities).filter(known), len(names)),
            unknown_labels=ids.null_count - labels.null_count,
        )


def _label_text(column: pa.Array) -> pa.Array:
    """Returns labels as text, a whole number by its digits; null where there is none, as NaN."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        is_whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53))
        digits = pc.cast(pc.cast(pc.if_else(is_whole, column, None), pa.int64()), pa.string())
        return pc.coalesce(digits, pc.cast(column, pa.string()))
    return pc.cast(column, pa.string())


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _label_ids(labels: pa.Array, names: pa.Array, is_text: bool) -> pa.Array:
    """Returns the id that each label is the digits or the name of, else null.

    Where labels may be both, such as a rating "1" of a model with names "1" to "5", those in a
    text column are names and those in a column of numbers are ids. A name that several ids share
    stands for the first: predictions do not tell them apart.
    """
    digits = pa.array([str(i) for i in range(len(names))], pa.string())
    first = pc.index_in(names, value_set=names)
    by_digits = first.take(pc.index_in(labels, value_set=digits))
    by_name = pc.index_in(labels, value_set=names)
    return pc.coalesce(by_name, by_digits) if is_text else pc.coalesce(by_digits, by_name)


def _predicted_ids(column: pa.Array, names: pa.Array) -> npt.NDArray[np.int64]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    ids = pc.index_in(pc.cast(column, pa.string()), value_set=names)
    if ids.null_count:
        strange = column.filter(pc.is_null(ids))[0].as_py()
        raise JobError(
            f"prediction {strange!r} is none of the model's {len(names)} labels; the file was "
            "scored by another model, so score it again"
        )
    return ids.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _matrix(column: pa.Array, width: int) -> npt.NDArray[np.float32]:
    """Returns lists of one width as float32 (rows, width)."""
    wrong = pc.fill_null(pc.not_equal(pc.list_value_length(column), width), True)
    if pc.any(wrong).as_py():
        strange = column.filter(wrong)[0].as_py()
        raise JobError(
            f"probabilities {strange}: expected {width} numbers, one for each label; the file was "
            "scored by another model, so score it again"
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(-1, width)
