"""How fast an output was made, and for what price, for two of them side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sparkinfer.comparing.outputs import ScoredOutput
from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.records import Records
from sparkinfer.sinks.parquet import ParquetFolder


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
    """Returns what an output's records say."""
    manifest, devices = output.manifest, Counter[str]()
    sink = ParquetFolder(output.path, manifest.run)
    for record in Ledger(Records(output.path, manifest.run), sink, manifest.chunks).standing():
        devices[record.device] += record.rows
    return Speed(output.status.rows_per_s, output.status.tokens, dict(devices))
