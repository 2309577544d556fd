"""The package's own metrics of an output, added up record by record.

Nothing is imported that an output names: metrics of the user's are known to the run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sparkinfer.exceptions import SparkInferError
from sparkinfer.jobs.manifest import Manifest
from sparkinfer.metrics.measure import Measure, Measured, States
from sparkinfer.metrics.several import joined
from sparkinfer.models.tasks import TASKS

T = TypeVar("T")


class OwnMetrics:
    """Adds up the metrics of each model of an output, by its name.

    Args:
        manifest: of the output.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._of_models = {
            name: _OfModel(measure_of(settings, labels_of(manifest, name)))
            for name, settings in settings_by_model(manifest).items()
        }

    def add(self, states: Mapping[str, Any]) -> None:
        """Adds the metrics of a record."""
        for name, one in self._of_models.items():
            one.add(states.get(name, {}) if name else states)

    def by_model(self) -> dict[str, Measured]:
        """Returns the values of each model, or why there are none."""
        return {name: one.measured() for name, one in self._of_models.items()}

    def measured(self) -> Measured:
        """Returns the values of all; of several models, they have the model's name."""
        return joined(self.by_model())

    def states(self) -> dict[str, States]:
        """Returns the sum of the states of each model; none where they cannot be added up."""
        return {name: one.states() for name, one in self._of_models.items()}


class _OfModel:
    """Adds up the metrics of one model, as long as they make sense."""

    def __init__(self, measure: Measure) -> None:
        self._problem: str | None = None
        self._adding = self._try(measure.adding)

    def add(self, state: States) -> None:
        adding = self._adding
        if adding is not None:
            self._try(lambda: adding.add(state))

    def measured(self) -> Measured:
        found = None if self._adding is None else self._try(self._adding.measured)
        return Measured(problem=self._problem) if found is None else found

    def states(self) -> States:
        found = None if self._adding is None else self._try(self._adding.states)
        return {} if found is None else found

    def _try(self, act: Callable[[], T]) -> T | None:
        """Returns what comes of it; None if it fails, or something failed before."""
        if self._problem is not None:
            return None
        try:
            return act()
        except (SparkInferError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._problem = f"their records cannot be added up ({error})"
            return None


def measure_of(settings: Mapping[str, Any], labels: tuple[str, ...]) -> Measure:
    """Returns what is measured of a model by the package itself."""
    task = TASKS.get(str(settings.get("task")))
    evaluation = task.evaluation if task is not None else None
    return Measure(evaluation, settings.get("label_col"), prefix_of(settings), labels)


def prefix_of(settings: Mapping[str, Any]) -> str:
    """Returns the prefix of a model's columns, by its settings."""
    return str(settings.get("output_prefix", ""))


def settings_by_model(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Returns the settings of each model by its name; of a model alone, by an empty name."""
    settings = manifest.settings
    names = settings.get("models")
    if names is None:
        return {"": dict(settings)}
    return {
        name: {
            key.removeprefix(f"models.{name}."): value
            for key, value in settings.items()
            if key.startswith(f"models.{name}.")
        }
        for name in names
    }


def labels_of(manifest: Manifest, name: str) -> tuple[str, ...]:
    """Returns the labels of a model in the order of the probabilities."""
    labels = manifest.labels
    return tuple(labels.get(name, ())) if isinstance(labels, Mapping) else labels


def metrics_of_run(manifest: Manifest) -> tuple[str, ...]:
    """Returns the metrics whose code the run imported: of the user, of a task that is not ours."""
    found: list[str] = []
    for name, settings in settings_by_model(manifest).items():
        task, label = str(settings.get("task")), f"{name}: " if name else ""
        if settings.get("label_col") is None:
            continue
        if task not in TASKS:
            found.append(f"{label}metrics of task {task!r}")
        found += [f"{label}metric {metric!r}" for metric in settings.get("metrics") or ()]
    return tuple(found)
