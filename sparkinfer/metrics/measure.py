"""The metrics of one run: chosen on the driver, computed by workers, merged on the driver."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.metrics.base import Evaluation, Labels, Metric
from sparkinfer.user_code import load_named

States = Mapping[str, Mapping[str, Any]]
"""As JSON values, the state of the labels as `LABELS` and, by the name of each metric, its state by
group of rows; see `Evaluation`."""

LABELS = "labels"
"""Key of the labels' state; no metric has this name."""


N_TOKENS, TRUNCATED, ERROR = "n_tokens", "truncated", "error"
"""Columns that models add, without their prefix; of functions, only the last."""


@dataclass(frozen=True)
class Measured:
    """What was measured over all rows.

    Attributes:
        metrics: values by name, all finite.
        problem: why there are none if no label is one of the model's, else None.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Measure:
    """What is measured of scored rows; sent to the workers.

    Attributes:
        evaluation: how the task's results are measured; None: they are not.
        label_col: column with the true labels; None: nothing is measured.
        prefix: before the names of the scored columns.
        labels: of the model, in the order of the probabilities.
        user_metrics: further metrics as `package.module:ClassName`.
        counted: columns, without their prefix, of which is counted what rows hold.
    """

    evaluation: Evaluation | None = None
    label_col: str | None = None
    prefix: str = ""
    labels: tuple[str, ...] = ()
    user_metrics: tuple[str, ...] = ()
    counted: tuple[str, ...] = (N_TOKENS, TRUNCATED, ERROR)

    @property
    def prefixes(self) -> dict[str, str]:
        """The prefix by the model's name, which is empty for a model alone."""
        return {"": self.prefix}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the output that are read; none if nothing is measured."""
        if self.evaluation is None or self.label_col is None or not self.labels:
            return ()
        return (self.label_col, *(self.prefix + name for name in self.evaluation.columns))

    def metrics(self) -> list[Metric]:
        """Returns new metrics: those of the task that fit the labels, then the user's in order.

        Raises:
            ConfigError: a class cannot be loaded or is not a metric, or two metrics share a name.
        """
        if self.evaluation is None or not self.columns:
            return []
        metrics = self.evaluation.metrics(self.labels)
        metrics += [_user_metric(path, self.labels) for path in self.user_metrics]
        _refuse_repeated([metric.name for metric in metrics], self.evaluation.names)
        return metrics

    def start(self) -> Measuring:
        """Returns an object that takes rows."""
        return Measuring(self)

    def look(self, labels: Iterable[pa.Array]) -> Labels | None:
        """Returns an account of true labels; None if they are not measured."""
        if self.evaluation is None or not self.columns:
            return None
        seen = self.evaluation.labels(self.labels)
        for column in labels:
            seen.add(column)
        return seen

    def add_up(self, states: Iterable[States]) -> States:
        """Returns the sum of the states of several files or chunks.

        A metric for which any of them has no state is left out, since its values would cover only
        part of the rows.

        Raises:
            JobError: a state was computed for other labels.
        """
        adding = self.adding()
        for state in states:
            adding.add(state)
        return adding.states()

    def values(self, states: Iterable[States]) -> Measured:
        """Returns the metrics' values over the rows of all states.

        States are read one at a time, to the last. See `add_up` for what is left out. A user's
        value whose name is already used is returned as `metric.value`.

        Raises:
            JobError: a state was computed for other labels.
        """
        adding = self.adding()
        for state in states:  # to the end, since callers count what they yield
            adding.add(state)
        return adding.measured()

    def adding(self) -> Adding:
        """Returns an object that takes states."""
        return Adding(self)


class Adding:
    """Adds up states of a measure, which are not kept.

    Args:
        measure: what is measured.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._is_any = False
        labels = measure.look([])
        self._total: _Total | None = None
        if labels is not None:
            self._total = _Total(labels, [metric.name for metric in measure.metrics()])

    def add(self, state: States) -> None:
        """Adds a state; one of rows that were not measured leaves nothing to say of any."""
        self._is_any = True
        if LABELS not in state:
            self._total = None
        if self._total is not None:
            self._total.merge(state, self._measure.metrics)

    def states(self) -> States:
        """Returns the sum as a state."""
        return self._total.states() if self._is_any and self._total is not None else {}

    def counted(self) -> list[Metric]:
        """Returns the metrics with all rows added, those of the groups that count."""
        if self._total is None or not self._is_any:
            return []
        return self._total.counted(self._measure.metrics())

    def measured(self) -> Measured:
        """Returns the values over all rows."""
        problem = self._total.labels.problem() if self._total is not None and self._is_any else None
        if problem is not None:
            return Measured(problem=f"label_col={self._measure.label_col!r}: {problem}")
        values: dict[str, float] = {}
        for metric in self.counted():
            for name, value in metric.compute().items():
                if math.isfinite(value):
                    values[f"{metric.name}.{name}" if name in values else name] = float(value)
        return Measured(values)


class _Total:
    """A sum of states.

    Args:
        labels: without rows.
        names: of the metrics.
    """

    def __init__(self, labels: Labels, names: Sequence[str]) -> None:
        self.labels = labels
        self._names = list(names)
        self._groups: dict[str, dict[str, Metric]] = {}

    def merge(self, state: States, new_metrics: Callable[[], list[Metric]]) -> None:
        """Adds a state; drops the metrics that it lacks."""
        self.labels.merge(state[LABELS])
        self._names = [name for name in self._names if name in state]
        for name in self._names:
            for group, sums in state[name].items():
                if group not in self._groups:
                    self._groups[group] = {metric.name: metric for metric in new_metrics()}
                self._groups[group][name].merge(sums)

    def states(self) -> States:
        """Returns the sum as a state."""
        return _states(self.labels, self._groups, self._names)

    def counted(self, metrics: list[Metric]) -> list[Metric]:
        """Returns metrics, with the rows of the groups that count added to each.

        Args:
            metrics: without rows.
        """
        counted = [metric for metric in metrics if metric.name in self._names]
        for group in self.labels.groups():
            for metric in counted:
                if group in self._groups:
                    metric.merge(self._groups[group][metric.name].state())
        return counted


def _states(
    labels: Labels, groups: Mapping[str, Mapping[str, Metric]], names: Iterable[str]
) -> States:
    by_name = {
        name: {group: metrics[name].state() for group, metrics in groups.items()} for name in names
    }
    return {LABELS: labels.state(), **by_name}


class Measuring:
    """Updates the metrics with scored rows as they come.

    Args:
        measure: what is measured.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._labels = measure.look([])
        self._names = [metric.name for metric in measure.metrics()]
        self._groups: dict[str, dict[str, Metric]] = {}

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Adds rows with all columns of the output, or at least those that are read.

        Raises:
            JobError: they were not scored by a model with these labels.
        """
        evaluation = self._measure.evaluation
        if self._labels is None or evaluation is None:
            return
        columns = [rows.column(name) for name in self._measure.columns]
        looked_at = pa.Table.from_arrays(columns, names=["label", *evaluation.columns])
        for batch in looked_at.combine_chunks().to_batches():
            # All rows: how labels are read must not depend on which rows could be scored.
            self._labels.add(batch.column(0))
            for group, part in evaluation.rows(batch, self._measure.labels):
                for metric in self._of(group):
                    metric.update(part)

    def states(self) -> States:
        """Returns the state of each metric, by the metric's name."""
        if self._labels is None:
            return {}
        return _states(self._labels, self._groups, self._names)

    def _of(self, group: str) -> Iterable[Metric]:
        if group not in self._groups:
            self._groups[group] = {metric.name: metric for metric in self._measure.metrics()}
        return self._groups[group].values()


def check_metrics(user_metrics: Sequence[str], evaluation: Evaluation | None) -> None:
    """Raises ConfigError for classes that `Measure` would reject, before labels are known."""
    classes = [_user_class(path) for path in user_metrics]
    own = evaluation.names if evaluation is not None else ()
    _refuse_repeated([*own, *(kind.name for kind in classes if hasattr(kind, "name"))], own)


def _refuse_repeated(names: Iterable[str], own: Sequence[str]) -> None:
    repeated = [name for name, times in Counter([LABELS, *names]).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"metrics: more than one is called {repeated[0]!r}; name each class once and give it "
            f"its own `name`, other than {', '.join([LABELS, *own])}"
        )


def _user_class(path: str) -> Any:
    expected = f"metric {path!r}: expected an importable `package.module:ClassName`"
    where = "where Python can find it"
    kind = load_named(path, expected, "my_metrics:TopTwoAccuracy", where)
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
            f"metric {path!r}: expected a class that can be called with the label names, but "
            f"{list(label_names)[:8]} raised {type(error).__name__}: {error}; correct the class"
        ) from error
    if not isinstance(getattr(metric, "name", None), str):
        raise ConfigError(
            f"metric {path!r}: expected a `name` that is a string, got "
            f"{getattr(metric, 'name', None)!r}; add it to the class"
        )
    return metric
