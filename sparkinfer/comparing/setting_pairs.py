"""What determines the results of two models, and differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparkinfer.comparing.outputs import ScoredModel, ScoredOutput
from sparkinfer.comparing.result import SettingPair

_OF_FILES = ("output_prefix", "columns", "carry_cols", "delta.table", "models")
"""Settings that change where results are, not what they are."""


def unlike_settings(
    outputs: tuple[ScoredOutput, ScoredOutput], models: tuple[ScoredModel, ScoredModel]
) -> Iterator[SettingPair]:
    """Yields the settings that are not the same, with the name of the model among several."""
    a, b = (_settings(output, model) for output, model in zip(outputs, models, strict=True))
    label = f"{models[0].name}: " if models[0].name else ""
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            yield SettingPair(label + name, a.get(name), b.get(name))


def _settings(output: ScoredOutput, model: ScoredModel) -> dict[str, Any]:
    manifest = output.manifest
    of_all = {k: v for k, v in manifest.settings.items() if not k.startswith("models.")}
    found = {"written_by": manifest.written_by, **of_all, **model.settings}
    is_of_files = (*_OF_FILES, "vectors.")
    return {name: value for name, value in found.items() if not name.startswith(is_of_files)}
