"""How fast an output was made, and for what price, for two of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparkinfer.comparing.outputs import ScoredOutput


@dataclass(frozen=True)
class Speed:
    """How fast an output was made.

    Attributes:
        rows_per_s: of its newest writer; None: it cannot be computed.
        tokens: of all rows.
        devices: rows by what the model ran on.
    """

    rows_per_s: float | None
    tokens: int
    devices: Mapping[str, int]


def speed_of(output: ScoredOutput) -> Speed:
    """Returns what an output says of itself."""
    return Speed(output.status.rows_per_s, output.status.tokens, output.devices)
