"""How many rows may have an error, or batches fail over one, before a run stops."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import TooManyErrorsError
from sparkinfer.jobs.done import MOST_REASONS
from sparkinfer.models.scorer import NULL_TEXT


class ErrorLimit:
    """Adds up the rows with an error, those of earlier runs included; thread-safe.

    Args:
        config: says how many there may be.
        total_rows: of the whole input.
    """

    def __init__(self, config: ScoringConfig, total_rows: int) -> None:
        self._asked = config.max_error_rows
        self._most = _most(self._asked, total_rows)
        self._most_batches = config.fn.max_errored_batches
        self._errors = 0
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, errors: int, reasons: Mapping[str, int]) -> None:
        """Adds rows.

        Raises:
            TooManyErrorsError: there are more than allowed; it names the most frequent reasons.
        """
        with self._lock:
            self._errors += errors
            self._reasons.update(reasons)
            self._reasons = Counter(dict(self._reasons.most_common(MOST_REASONS)))
            if self._most is not None and self._errors > self._most:
                raise TooManyErrorsError(self._message())

    def check_batches(self, errored: int) -> None:
        """Raises TooManyErrorsError if more batches than allowed failed over a row in this run."""
        if self._most_batches is None or errored <= self._most_batches:
            return
        with self._lock:
            often = ", ".join(f"{n} x {reason!r}" for reason, n in self._reasons.most_common(3))
        raise TooManyErrorsError(
            f"{errored} batches failed over a row, fn.max_errored_batches={self._most_batches} "
            f"allows fewer: {often or 'see the output'}. Either correct the function and run with "
            "--overwrite; or raise the limit and run again to resume"
        )

    def _message(self) -> str:
        often = ", ".join(f"{n} x {reason!r}" for reason, n in self._reasons.most_common(3))
        fix = "run with --overwrite once the input has changed"
        if self._reasons[NULL_TEXT] < self._errors:  # rows without a text are not retried
            fix = (
                "fix the cause and run with --retry-errors, or with --overwrite if the input "
                "changes"
            )
        return (
            f"{self._errors} rows have an error, and max_error_rows={self._asked!r} allows "
            f"{self._most}: {often or 'see the output'}. Either {fix}; or raise the limit and run "
            "again to resume"
        )


def _most(asked: str | None, total_rows: int) -> int | None:
    """Returns how many rows may have an error, None for any number."""
    if asked is None:
        return None
    if asked.endswith("%"):
        return math.floor(Fraction(asked[:-1]) / 100 * total_rows)
    return int(asked)
