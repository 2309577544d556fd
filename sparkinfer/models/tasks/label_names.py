"""Names of what a model may predict."""

from __future__ import annotations

from typing import Any

from sparkinfer.exceptions import ModelLoadError


def label_names(model_config: Any) -> tuple[str, ...]:
    """Returns the names of `id2label` by label id.

    Raises:
        ModelLoadError: the ids are not 0, 1, 2, ...: which output has which name is unknown.
    """
    names = model_config.id2label
    if sorted(names) != list(range(len(names))):
        ids = ", ".join(map(str, sorted(names)[:10]))
        raise ModelLoadError(
            f"config.json: the label ids of id2label are {ids}, expected 0 to "
            f"{len(names) - 1} without a gap, one label for each output of the model; correct "
            "id2label and label2id in the model's config.json"
        )
    return tuple(str(names[i]) for i in range(len(names)))
