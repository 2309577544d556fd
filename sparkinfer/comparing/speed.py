"""How fast an output was made, and for what price, for two of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparkinfer.comparing.outputs import ScoredOutput
from sparkinfer.jobs.sessions import read_sessions
from sparkinfer.report.asked import scoring_rate
from sparkinfer.report.cost import cost_of


@dataclass(frozen=True)
class Speed:
    """How fast an output was made, as far as the calls that made it have recorded it.

    Attributes:
        rows_per_s: of scoring; None: not known.
        seconds: of all calls, their start included; None: none left a record.
        tokens: of all rows.
        devices: rows by what the model ran on.
        cost_per_million: of a million rows, in the unit of the price; None: no price was given.
    """

    rows_per_s: float | None
    seconds: float | None
    tokens: int
    devices: Mapping[str, int]
    cost_per_million: float | None


def speed_of(output: ScoredOutput) -> Speed:
    """Returns what an output says of itself."""
    sessions = read_sessions(output.path, output.manifest.run)
    cost = cost_of(sessions, None)
    return Speed(
        rows_per_s=scoring_rate(sessions) or output.status.rows_per_s,
        seconds=sum(session.seconds for session in sessions) if sessions else None,
        tokens=output.status.tokens,
        devices=output.devices,
        cost_per_million=None if cost is None else cost.per_million,
    )
