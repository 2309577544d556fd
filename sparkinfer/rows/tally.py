"""What scored rows hold: counts, error reasons, metric states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.metrics.measure import ERROR, N_TOKENS, TRUNCATED, States
from sparkinfer.metrics.several import Measures
from sparkinfer.models.scorer import NULL_TEXT

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
    """

    rows: int = 0
    read: int = 0
    errors: int = 0
    truncated: int = 0
    tokens: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    metrics: States = field(default_factory=dict)


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
    """

    def __init__(self, measure: Measures) -> None:
        self._tally = Tally()
        self._reasons: Counter[str] = Counter()
        self._prefixes = measure.prefixes
        self._counted = measure.counted
        self._measuring = measure.start()

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Takes rows that have at least the columns that are counted and measured."""
        self._count(rows)
        self._measuring.add(rows)

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
            given = {name: column.take(wanted).to_pylist() for name, column in errors.items()}
            of_rows = (
                dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)
            )
            self._reasons.update(_reason(row)[:REASON_LENGTH] for row in of_rows)

    def tally(self, read: int | None = None) -> Tally:
        """Returns the tally of all rows so far.

        Args:
            read: rows of the input that they were made of; None: as many.
        """
        self._tally.read = self._tally.rows if read is None else read
        self._tally.reasons = dict(self._reasons.most_common(MOST_REASONS))
        self._tally.metrics = self._measuring.states()
        return self._tally


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


def add_up(tallies: Iterable[Tally], measure: Measures) -> Tally:
    """Returns the sum over several files."""
    total = Tally()
    reasons: Counter[str] = Counter()
    states = []
    for tally in tallies:
        total.rows += tally.rows
        total.read += tally.read
        total.errors += tally.errors
        total.truncated += tally.truncated
        total.tokens += tally.tokens
        reasons.update(tally.reasons)
        states.append(tally.metrics)
    total.reasons = dict(reasons.most_common(MOST_REASONS))
    total.metrics = states[0] if len(states) == 1 else measure.add_up(states)
    return total
