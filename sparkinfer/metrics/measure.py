"""The metrics of one run: chosen on the driver, computed by workers, merged on the driver."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.metrics.base import Evaluation, Metric

States = Mapping[str, Mapping[str, Any]]
"""The state of each metric by its name, as JSON values."""


@dataclass(frozen=True)
class Measure:
    """What is measured of scored rows; sent to the workers.

    Attributes:
        evaluation: how the task's results are measured; None: they are not.
        label_col: column with the true labels; None: nothing is measured.
        prefix: before the names of the scored columns.
        labels: of the model, in the order of the probabilities.
        user_metrics: further metrics as `package.module:ClassName`.
    """

    evaluation: Evaluation | None = None
    label_col: str | None = None
    prefix: str = ""
    labels: tuple[str, ...] = ()
    user_metrics: tuple[str, ...] = ()

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

    def add_up(self, states: Iterable[States]) -> States:
        """Returns the sum of the states of several files or chunks.

        A metric for which any of them has no state is left out, since its values would cover only
        part of the rows.

        Raises:
            JobError: a state was computed for other labels.
        """
        return {metric.name: metric.state() for metric in self._merged(states)}

    def values(self, states: Iterable[States]) -> dict[str, float]:
        """Returns the metrics' values over the rows of all states; all are finite.

        States are read one at a time. See `add_up` for what is left out. A user's value whose name
        is already used is returned as `metric.value`.

        Raises:
            JobError: a state was computed for other labels.
        """
        values: dict[str, float] = {}
        for metric in self._merged(states):
            for name, value in metric.compute().items():
                if math.isfinite(value):
                    values[f"{metric.name}.{name}" if name in values else name] = float(value)
        return values

    def _merged(self, states: Iterable[States]) -> list[Metric]:
        metrics = self.metrics()
        is_any = False
        for state in states:
            is_any = True
            metrics = [metric for metric in metrics if metric.name in state]
            for metric in metrics:
                metric.merge(state[metric.name])
        return metrics if is_any else []


class Measuring:
    """Updates the metrics with scored rows as they come.

    Args:
        measure: what is measured.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._metrics = measure.metrics()

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Adds rows with all columns of the output, or at least those that are read.

        Raises:
            JobError: they were not scored by a model with these labels.
        """
        evaluation = self._measure.evaluation
        if not self._metrics or evaluation is None:
            return
        columns = [rows.column(name) for name in self._measure.columns]
        looked_at = pa.Table.from_arrays(columns, names=["label", *evaluation.columns])
        for batch in looked_at.combine_chunks().to_batches():
            for part in evaluation.rows(batch, self._measure.labels):
                for metric in self._metrics:
                    metric.update(part)

    def states(self) -> dict[str, dict[str, Any]]:
        """Returns the state of each metric, by the metric's name."""
        return {metric.name: metric.state() for metric in self._metrics}


def check_metrics(user_metrics: Sequence[str], evaluation: Evaluation | None) -> None:
    """Raises ConfigError for classes that `Measure` would reject, before labels are known."""
    classes = [_user_class(path) for path in user_metrics]
    own = evaluation.names if evaluation is not None else ()
    _refuse_repeated([*own, *(kind.name for kind in classes if hasattr(kind, "name"))], own)


def _refuse_repeated(names: Iterable[str], own: Sequence[str]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"metrics: more than one is called {repeated[0]!r}; name each class once and give it "
            f"its own `name`, other than {', '.join(own)}"
        )


def _user_class(path: str) -> Any:
    module, separator, class_name = path.partition(":")
    expected = f"metric {path!r}: expected an importable `package.module:ClassName`"
    if not (module and separator and class_name):
        raise ConfigError(f"{expected}, such as 'my_metrics:TopTwoAccuracy'")
    try:
        kind = getattr(importlib.import_module(module), class_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ConfigError(
            f"{expected}, but got {type(error).__name__}: {error}; put the module where Python can "
            "find it or correct the name"
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
            f"metric {path!r}: expected a class that can be called with the label names, but "
            f"{list(label_names)[:8]} raised {type(error).__name__}: {error}; correct the class"
        ) from error
    if not isinstance(getattr(metric, "name", None), str):
        raise ConfigError(
            f"metric {path!r}: expected a `name` that is a string, got "
            f"{getattr(metric, 'name', None)!r}; add it to the class"
        )
    return metric
