"""What a search has found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from sparkinfer.sinks.vectors.base import Neighbour
from sparkinfer.terminal import printable


def describe_nearest(found: Sequence[Neighbour]) -> str:
    """Returns a line for each: its distance, its id, and what is kept beside it."""
    if not found:
        return "the store is empty"
    width = max(len(printable(one.id)) for one in found)
    return "\n".join(
        f"{one.distance:>9.4f}  {printable(one.id):<{width}}  {_listed(one)}".rstrip()
        for one in found
    )


def _listed(one: Neighbour) -> str:
    return printable("  ".join(f"{name}={value!r}" for name, value in one.metadata.items()))


def nearest_as_json(found: Sequence[Neighbour]) -> str:
    """Returns the same as one JSON document."""
    return json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False)
