"""Which part of an output is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparkinfer.jobs.manifest import ChunkRecord
from sparkinfer.plan.chunks import Chunk

MOST_REASONS = 100
"""Number of reasons kept: a model may give a different reason for each row."""


@dataclass
class Done:
    """Which part of an output is done: the sum of its records, which are not kept.

    Attributes:
        numbers: of the chunks that have a record.
        files: names of their files.
        rows: rows in these files.
        errors: rows among them with an error.
        truncated: rows among them whose text was truncated.
        tokens: tokens of all rows.
        reasons: the most frequent error reasons, and how often each occurs.
        wrong: numbers of records that match no chunk of the manifest in number and rows.
    """

    numbers: set[int] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    rows: int = 0
    errors: int = 0
    truncated: int = 0
    tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)

    def add(self, record: ChunkRecord, chunks: Sequence[Chunk]) -> None:
        """Adds a record; if it matches no chunk of the manifest, the output cannot be finished."""
        number = record.number
        if number >= len(chunks) or chunks[number].rows != record.rows:
            self.wrong.append(number)
        self.numbers.add(number)
        self.files.update(record.files)
        self.rows += record.rows
        self.errors += record.errors
        self.truncated += record.truncated
        self.tokens += record.tokens
        self.reasons.update(record.reasons)
        if len(self.reasons) > 2 * MOST_REASONS:
            self.reasons = Counter(dict(self.reasons.most_common(MOST_REASONS)))
