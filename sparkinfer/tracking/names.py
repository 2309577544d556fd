"""Names and values as MLflow takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sparkinfer.messages import shortened
from sparkinfer.redaction import HIDDEN, is_secret_name, without_secrets

MOST_OF_NAME = 250
MOST_OF_TAG = 5_000


def most_of_parameter() -> int:
    """Returns how many characters the value of a parameter may have."""
    from mlflow.utils import validation

    return int(getattr(validation, "MAX_PARAM_VAL_LENGTH", 500))


def valid_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by names that every store takes; two that would be the same are numbered."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        plain = re.sub(r"[^\w.\- ]", "_", name, flags=re.ASCII).lstrip(".") or "_"
        valid, number = plain[:MOST_OF_NAME], 1
        while valid in found:
            number += 1
            ending = f"_{number}"
            valid = plain[: MOST_OF_NAME - len(ending)] + ending
        found[valid] = value
    return found


def as_texts(values: Mapping[str, Any], most: int) -> dict[str, str]:
    """Returns values as texts by valid names, without secrets, the middle of a long one left out.

    Args:
        values: JSON values by name.
        most: characters of a text.
    """
    return valid_names({name: shortened(_text(name, one), most) for name, one in values.items()})


def _text(name: str, value: Any) -> str:
    if is_secret_name(name) and value is not None:
        return HIDDEN
    return without_secrets(value if isinstance(value, str) else json.dumps(value, default=str))
