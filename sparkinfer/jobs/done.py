"""Which part of an output is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sparkinfer.jobs.records import ChunkRecord
from sparkinfer.metrics.distributions import Distributions, add_each, read_distributions

MOST_REASONS = 100
"""Number of reasons kept: a model may give a different reason for each row."""


@dataclass
class Done:
    """Which part of an output is done: the sum of its records, which are not kept.

    Attributes:
        numbers: of the chunks that have a record.
        files: names of their files.
        rows: rows in these files.
        read: rows of the input that they were made of.
        errors: rows among them with an error.
        truncated: rows among them whose text was truncated.
        tokens: tokens of all rows.
        reasons: the most frequent error reasons, and how often each occurs.
        distributions: of the rows of each model, by its name.
    """

    numbers: set[int] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    rows: int = 0
    read: int = 0
    errors: int = 0
    truncated: int = 0
    tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    distributions: dict[str, Distributions] = field(default_factory=dict)

    def add(self, record: ChunkRecord) -> None:
        """Adds a record."""
        self.numbers.add(record.number)
        self.files.update(record.files)
        self.rows += record.rows
        self.read += record.rows_read
        self.errors += record.errors
        self.truncated += record.truncated
        self.tokens += record.tokens
        self.reasons.update(record.reasons)
        if len(self.reasons) > 2 * MOST_REASONS:
            self.reasons = Counter(dict(self.reasons.most_common(MOST_REASONS)))
        states = record.distributions.items()
        add_each(self.distributions, {name: read_distributions(state) for name, state in states})


def done_in(records: Iterable[ChunkRecord]) -> Done:
    """Returns what of an output is done, by the records that stand."""
    done = Done()
    for record in records:
        done.add(record)
    return done
