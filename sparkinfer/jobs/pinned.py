"""Which models a call runs, exactly: what a name that may change stood for when it was resolved."""

from __future__ import annotations

from collections.abc import Iterator

from sparkinfer.models.processor import ModelScoring
from sparkinfer.models.sources import ModelSource
from sparkinfer.plan.prelude import Prelude
from sparkinfer.redaction import without_secrets
from sparkinfer.rows.several import members_of


def models_of(prelude: Prelude) -> dict[str, str]:
    """Returns where each model is, with its version, as `sparkinfer.model` or `….model.NAME`."""
    found = {}
    for name, source in _sources(prelude):
        key = f"sparkinfer.model.{name}" if name else "sparkinfer.model"
        at = f"@{source.revision}" if source.revision else ""
        found[key] = without_secrets(source.location + at)
        found[f"{key}_fingerprint"] = source.fingerprint
    return found


def notes_of_versions(prelude: Prelude) -> list[str]:
    """Returns which version each alias, stage or `latest` of MLflow's registry stands for."""
    return [
        f"model {source.name_or_path} is {source.location}"
        for _, source in _sources(prelude)
        if source.kind == "mlflow" and source.location != source.name_or_path
    ]


def _sources(prelude: Prelude) -> Iterator[tuple[str, ModelSource]]:
    for name, one in members_of(prelude.resolved).items():
        if isinstance(one, ModelScoring):
            yield name, one.found
