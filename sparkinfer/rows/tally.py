"""What scored rows hold: counts, error reasons, metric states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkinfer.metrics.measure import Measure, States
from sparkinfer.storage import file_system

COUNTED = ("n_tokens", "truncated", "error")
"""Scored columns that every processor adds."""

MOST_REASONS, REASON_LENGTH = 10, 200
"""Kept per file: a model may give a different reason for each row."""


@dataclass
class Tally:
    """What some scored rows hold.

    Attributes:
        rows: rows, those with an error included.
        errors: rows among them that have an error.
        truncated: rows among them whose text was truncated.
        tokens: tokens of all rows.
        reasons: the most frequent error reasons, shortened, and how often each occurs.
        metrics: state of each metric, by its name.
    """

    rows: int = 0
    errors: int = 0
    truncated: int = 0
    tokens: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    metrics: States = field(default_factory=dict)


@dataclass(frozen=True)
class WrittenFile:
    """A Parquet file of scored rows, as reported by what wrote or read it.

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

    def __init__(self, measure: Measure) -> None:
        self._tally = Tally()
        self._reasons: Counter[str] = Counter()
        self._prefix = measure.prefix
        self._measuring = measure.start()

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Takes rows that have at least the columns that are counted and measured."""
        n_tokens, truncated, error = (rows.column(self._prefix + name) for name in COUNTED)
        tally = self._tally
        tally.rows += rows.num_rows
        tally.errors += rows.num_rows - error.null_count
        tally.truncated += pc.sum(truncated).as_py() or 0
        tally.tokens += pc.sum(n_tokens).as_py() or 0
        if error.null_count < rows.num_rows:
            given = error.drop_null().to_pylist()
            self._reasons.update(reason[:REASON_LENGTH] for reason in given)
        self._measuring.add(rows)

    def tally(self) -> Tally:
        """Returns the tally of all rows so far."""
        self._tally.reasons = dict(self._reasons.most_common(MOST_REASONS))
        self._tally.metrics = self._measuring.states()
        return self._tally


def tally_file(path: str, measure: Measure) -> Tally:
    """Returns what a scored Parquet file holds; reads only the few columns needed for it."""
    taker = TallyTaker(measure)
    columns = [measure.prefix + name for name in COUNTED]
    fs, name = file_system(path)
    with fs.open(name, "rb") as handle:
        for batch in pq.ParquetFile(handle).iter_batches(columns=[*measure.columns, *columns]):
            taker.add(batch)
    return taker.tally()


def add_up(tallies: Iterable[Tally], measure: Measure) -> Tally:
    """Returns the sum over several files."""
    total = Tally()
    reasons: Counter[str] = Counter()
    states = []
    for tally in tallies:
        total.rows += tally.rows
        total.errors += tally.errors
        total.truncated += tally.truncated
        total.tokens += tally.tokens
        reasons.update(tally.reasons)
        states.append(tally.metrics)
    total.reasons = dict(reasons.most_common(MOST_REASONS))
    total.metrics = states[0] if len(states) == 1 else measure.add_up(states)
    return total
