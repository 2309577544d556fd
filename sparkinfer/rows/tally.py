"""What scored rows hold: counts, error reasons, distributions, metric states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.metrics.distributions import (
    Distributions,
    DistributionTaker,
    added,
    read_distributions,
)
from sparkinfer.metrics.measure import ERROR, N_TOKENS, TRUNCATED, States
from sparkinfer.metrics.several import Measures
from sparkinfer.models.scorer import NULL_TEXT
from sparkinfer.workers.statistics import ScoringStatistics, read_statistics

MOST_REASONS, REASON_LENGTH = 10, 200
"""Kept per file: a model may give a different reason for each row."""


@dataclass
class Tally:
    """What some scored rows hold; of several models, a row counts once.

    Attributes:
        rows: rows, those with an error included.
        read: rows of the input that they were made of.
        errors: rows among them that have an error.
        truncated: rows among them whose text was truncated.
        tokens: tokens of all rows, of all models.
        reasons: the most frequent error reasons, shortened, and how often each occurs. Of several
            models, a reason says whose it is unless it is everyone's.
        metrics: state of each metric, by its name.
        distributions: of lengths, labels and confidences, by the model's name; none of functions.
        statistics: what scoring them took; nothing if nobody has told.
        devices: rows by what the model ran on, with the host's name; likewise.
    """

    rows: int = 0
    read: int = 0
    errors: int = 0
    truncated: int = 0
    tokens: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    metrics: States = field(default_factory=dict)
    distributions: dict[str, Distributions] = field(default_factory=dict)
    statistics: ScoringStatistics = field(default_factory=ScoringStatistics)
    devices: dict[str, int] = field(default_factory=dict)


def read_tally(values: Mapping[str, Any]) -> Tally:
    """Returns a tally that was told as JSON values."""
    distributions = values["distributions"].items()
    return Tally(
        **{
            **values,
            "distributions": {name: read_distributions(one) for name, one in distributions},
            "statistics": read_statistics(values["statistics"]),
        }
    )


@dataclass(frozen=True)
class WrittenFile:
    """A Parquet file of scored rows, as reported by what wrote it.

    Attributes:
        name: relative to its chunk's staging folder.
        tally: of its rows.
    """

    name: str
    tally: Tally


class TallyTaker:
    """Tallies scored rows as they come.

    Args:
        measure: which metrics are computed from them.
        scored: the columns that were added, with their prefixes.
    """

    def __init__(self, measure: Measures, scored: pa.Schema) -> None:
        self._tally = Tally()
        self._reasons: Counter[str] = Counter()
        self._prefixes = measure.prefixes
        self._counted = measure.counted
        self._measuring = measure.start()
        of_models = self._prefixes if N_TOKENS in self._counted else {}
        self._distributions = {
            name: DistributionTaker(prefix, scored) for name, prefix in of_models.items()
        }

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Takes rows that have at least the columns that are counted and measured."""
        self._count(rows)
        self._measuring.add(rows)
        for one in self._distributions.values():
            one.add(rows)

    def _count(self, rows: pa.Table | pa.RecordBatch) -> None:
        tally = self._tally
        truncated = np.zeros(rows.num_rows, np.bool_)
        failed = np.zeros(rows.num_rows, np.bool_)
        errors: dict[str, pa.Array] = {}
        for name, prefix in self._prefixes.items():
            counted = {column: rows.column(prefix + column) for column in self._counted}
            if N_TOKENS in counted:
                tally.tokens += pc.sum(counted[N_TOKENS]).as_py() or 0
                truncated |= _as_numpy(pc.fill_null(counted[TRUNCATED], False))
            errors[name] = counted[ERROR]
            failed |= _as_numpy(errors[name].is_valid())
        tally.rows += rows.num_rows
        tally.errors += int(failed.sum())
        tally.truncated += int(truncated.sum())
        if failed.any():
            wanted = pa.array(np.flatnonzero(failed))
            taken = {name: column.take(wanted) for name, column in errors.items()}
            self._reasons.update(reasons_of(taken))

    def tally(self, read: int | None = None) -> Tally:
        """Returns the tally of all rows so far.

        Args:
            read: rows of the input that they were made of; None: as many.
        """
        self._tally.read = self._tally.rows if read is None else read
        self._tally.reasons = dict(self._reasons.most_common(MOST_REASONS))
        self._tally.metrics = self._measuring.states()
        taken = {name: one.distributions() for name, one in self._distributions.items()}
        self._tally.distributions = taken
        return self._tally


def reasons_of(errors: Mapping[str, pa.Array | pa.ChunkedArray]) -> list[str]:
    """Returns why each of some rows has an error, shortened.

    Args:
        errors: of each model, by its name; in each row at least one is not null.
    """
    given = {name: column.to_pylist() for name, column in errors.items()}
    rows = (dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True))
    return [_reason(row)[:REASON_LENGTH] for row in rows]


def _reason(errors: Mapping[str, str | None]) -> str:
    """Returns why a row has an error, as one reason.

    A missing text is a reason only where there is no other: it is the input's.

    Args:
        errors: of each model, by its name; at least one is not None.
    """
    if len(set(errors.values())) == 1:
        return str(next(iter(errors.values())))
    known = {name: why for name, why in errors.items() if why not in (None, NULL_TEXT)}
    return "; ".join(f"{name}: {why}" for name, why in known.items()) or NULL_TEXT


def _as_numpy(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no chunk
        return np.zeros(0, np.bool_)
    values: npt.NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return values


def add_up(tallies: Sequence[Tally], measure: Measures) -> Tally:
    """Returns the sum over several files."""
    total = Tally()
    reasons: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    for tally in tallies:
        total.rows += tally.rows
        total.read += tally.read
        total.errors += tally.errors
        total.truncated += tally.truncated
        total.tokens += tally.tokens
        total.statistics.add(tally.statistics)
        reasons.update(tally.reasons)
        devices.update(tally.devices)
    states = [tally.metrics for tally in tallies]
    total.reasons = dict(reasons.most_common(MOST_REASONS))
    total.devices = dict(devices)
    total.metrics = states[0] if len(states) == 1 else measure.add_up(states)
    total.distributions = added(tally.distributions for tally in tallies)
    return total
