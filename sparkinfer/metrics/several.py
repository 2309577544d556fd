"""The metrics of several models that scored the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from sparkinfer.metrics.measure import (
    ERROR,
    N_TOKENS,
    TRUNCATED,
    Adding,
    Measure,
    Measured,
    Measuring,
    States,
)


@dataclass(frozen=True)
class SeveralMeasures:
    """What is measured of the rows of several models; see `Measure`.

    The state of each is kept, and its values are named, under the model's name.

    Attributes:
        by_model: what is measured of each model, by its name.
    """

    by_model: Mapping[str, Measure]

    @property
    def prefixes(self) -> dict[str, str]:
        """Before the names of the scored columns, by model."""
        return {name: one.prefix for name, one in self.by_model.items()}

    @property
    def counted(self) -> tuple[str, ...]:
        """The columns of each, without their prefix, of which is counted what rows hold."""
        return (N_TOKENS, TRUNCATED, ERROR)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the output that are read for any of them."""
        read = (column for one in self.by_model.values() for column in one.columns)
        return tuple(dict.fromkeys(read))

    def start(self) -> SeveralMeasuring:
        """Returns an object that takes rows."""
        return SeveralMeasuring({name: one.start() for name, one in self.by_model.items()})

    def add_up(self, states: Iterable[States]) -> States:
        """Returns the sum of the states of several files or chunks; see `Measure.add_up`."""
        adding = self._added(states)
        return {name: one.states() for name, one in adding.items()}

    def values(self, states: Iterable[States]) -> Measured:
        """Returns the metrics of each model as `MODEL.METRIC`; see `Measure.values`."""
        return joined({name: one.measured() for name, one in self._added(states).items()})

    def _added(self, states: Iterable[States]) -> dict[str, Adding]:
        adding = {name: one.adding() for name, one in self.by_model.items()}
        for state in states:  # to the end, since callers count what they yield
            for name, one in adding.items():
                one.add(state.get(name, {}))
        return adding


class SeveralMeasuring:
    """Updates the metrics of several models with scored rows as they come.

    Args:
        by_model: takes the rows for each.
    """

    def __init__(self, by_model: Mapping[str, Measuring]) -> None:
        self._by_model = by_model

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Adds rows with all columns of the output, or at least those that are read."""
        for one in self._by_model.values():
            one.add(rows)

    def states(self) -> States:
        """Returns the states of each model's metrics, by its name."""
        return {name: one.states() for name, one in self._by_model.items()}


def joined(found: Mapping[str, Measured]) -> Measured:
    """Returns what was measured of several models as `MODEL.METRIC`; of a model alone, as it is.

    Args:
        found: by the model's name, which is empty for a model alone.
    """
    if set(found) == {""}:
        return found[""]
    problems = [f"{name}: {one.problem}" for name, one in found.items() if one.problem]
    metrics = {
        f"{name}.{metric}": value
        for name, one in found.items()
        for metric, value in one.metrics.items()
    }
    return Measured(metrics, "; ".join(problems) or None)


Measures = Measure | SeveralMeasures
"""What is measured of scored rows; sent to the workers."""


def by_model(measures: Measures) -> Mapping[str, Measure]:
    """Returns what is measured of each model; of a model alone, by an empty name."""
    return measures.by_model if isinstance(measures, SeveralMeasures) else {"": measures}
