"""What of a call determines its output."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sparkinfer.config import ScoringConfig
from sparkinfer.files.columns import type_name
from sparkinfer.files.formats import CSV
from sparkinfer.plan.prelude import Prelude
from sparkinfer.redaction import without_secrets
from sparkinfer.sinks.vectors.asked import asked_vectors


def settings_of(prelude: Prelude) -> dict[str, Any]:
    """Returns what determines the output before the processor is tried out, as JSON values."""
    config = prelude.config
    carried = config.carry_cols
    columns = prelude.asked_columns.carried
    is_csv = prelude.table.input_format == CSV
    return {
        "input": _shown_input(config),
        "input_version": config.input_version,
        "carry_cols": None if carried is None else list(carried),
        "columns": {field.name: type_name(field.type) for field in columns},
        **_settings_of_models(config),
        **({f"csv.{key}": value for key, value in asdict(config.csv).items()} if is_csv else {}),
        **prelude.resolved.settings(),
        **_settings_of_vectors(prelude),
        "delta.table": config.delta.table and without_secrets(config.delta.table),
    }


def _settings_of_vectors(prelude: Prelude) -> dict[str, Any]:
    asked = asked_vectors(prelude.config, prelude.asked)
    return {"vectors.store": None} if asked is None else asked.settings()


def _settings_of_models(config: ScoringConfig) -> dict[str, Any]:
    """Returns what determines the columns and metrics of each model, by its name if it has one."""
    return {
        f"models.{name}.{key}" if name else key: value
        for name, one in config.by_model.items()
        for key, value in {
            "label_col": one.label_col,
            "output_prefix": one.output_prefix,
            "metrics": list(one.metrics),
        }.items()
    }


def _shown_input(config: ScoringConfig) -> str | list[str]:
    if isinstance(config.input, tuple):
        return [without_secrets(path) for path in config.input]
    return without_secrets(str(config.input))
