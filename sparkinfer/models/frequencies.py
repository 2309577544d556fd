"""Finds the rotary parts of a model that turn a text otherwise if a long one shares its batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def growing_frequencies(module: Any, longest: int) -> dict[str, int]:
    """Returns the rotary parts that take other frequencies for texts of up to this length.

    By name, with the tokens beyond which they do; whatever shares a batch with such a text is
    turned likewise. Source: `dynamic_rope_update` in `modeling_rope_utils` of transformers.
    """
    found = {}
    parts = () if module is None else module.named_modules()
    for name, part in parts:
        kinds = getattr(part, "rope_type", None)
        kinds = list(kinds.values()) if isinstance(kinds, Mapping) else [kinds]
        if any(kind == "longrope" or "dynamic" in str(kind) for kind in kinds):
            ordinary = _ordinary_length(part)
            if ordinary < longest:
                found[name] = ordinary
    return found


def _ordinary_length(part: Any) -> int:
    """Returns the tokens up to which a rotary part keeps its frequencies; 0 if it does not say."""
    config = part.config
    named = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_layer = [item for item in named.values() if isinstance(item, Mapping)]
    key = "original_max_position_embeddings"
    lengths = [item[key] for item in (named, *by_layer) if item.get(key)]
    whole = getattr(config, key, None) or getattr(part, "original_max_seq_len", None)
    return int(min(lengths, default=whole or 0))
