"""Makes a scored chunk part of the output: checked, published, recorded, in this order.

A crash between any two of these steps leaves the chunk either done or to be done again. The lease
is checked before a file is moved; anything that an earlier writer had staged is gone by then.
"""

from __future__ import annotations

import errno
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from fractions import Fraction
from time import sleep

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError, RowConservationError
from sparkinfer.jobs.done import MOST_REASONS
from sparkinfer.jobs.lease import Lease
from sparkinfer.jobs.manifest import ChunkRecord, ManifestFolder
from sparkinfer.jobs.output import Output
from sparkinfer.logs import get_logger
from sparkinfer.metrics.measure import Measure
from sparkinfer.plan.ports import ScoredChunk
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.tally import Tally, add_up, rows_in
from sparkinfer.storage import join
from sparkinfer.workers import heap

logger = get_logger(__name__)

TRIM_EVERY = 32
"""Chunks after which the heap is trimmed: footers and records vary in size and fragment it."""

TRIES, FIRST_PAUSE_S = 4, 0.5
"""For transient errors of a store; each pause is four times the previous one."""

PASSING_ERRNOS = frozenset({errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT})
"""What mounted and remote file systems report when overloaded or reconnecting."""

LASTING_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


class Committer:
    """Commits the chunks of one run; thread-safe. A `ChunkLedger`.

    Args:
        config: what is scored.
        measure: which metrics are computed.
        device: what the model runs on.
        output: where to publish the files.
        folder: where to write the records.
        lease: held by the run.
        progress: receives what is committed.
        total_rows: of the whole input.
        errors: rows with an error in the chunks that an earlier run committed.
    """

    def __init__(
        self,
        config: ScoringConfig,
        measure: Measure,
        device: str,
        output: Output,
        folder: ManifestFolder,
        lease: Lease,
        progress: Progress,
        total_rows: int,
        errors: int,
    ) -> None:
        self._config = config
        self._measure = measure
        self._device = device
        self._output = output
        self._folder = folder
        self._lease = lease
        self._progress = progress
        self._limit = error_limit(config, total_rows)
        self._errors = errors
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def commit(self, scored: ScoredChunk) -> None:
        """Checks, publishes and records a chunk.

        What its files hold is what those say who wrote them; that they are whole, and have as many
        rows, is read from their footers.

        Raises:
            RowConservationError: its files do not hold as many rows as the chunk.
            JobError: more rows have an error than allowed; the chunk is committed nonetheless.
            LeaseLostError: another run writes here now.
        """
        tally = add_up((file.tally for file in scored.files), self._measure)
        names = [file.name for file in scored.files]
        _refuse_other_rows(scored, tally.rows)
        _refuse_other_rows(scored, sum(rows_in(join(scored.staging, name)) for name in names))
        moves = self._output.moves(scored.chunk, scored.staging, names)
        self._insist(lambda: self._output.publish(moves))
        record = self._record(scored, tally, {one.name: one.size for one in moves})
        # If another run has taken over meanwhile, it has removed these files: they have no record.
        self._insist(lambda: self._folder.add(record))
        self._output.remove_folder(scored.staging)
        if scored.chunk.number % TRIM_EVERY == 0:
            heap.trim()
        self._progress.commit(tally.rows, tally.errors)
        self._refuse_errors(tally)

    def note_deaths(self, number: int, deaths: int) -> None:
        """Records that workers died over a chunk."""
        with self._lock:
            self._folder.add_deaths(number, deaths)

    def _insist(self, act: Callable[[], None]) -> None:
        """Does something idempotent while the lease is held; retries transient store errors."""
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(TRIES)):
            with self._lock:
                self._lease.check()
            try:
                act()
                return
            except OSError as error:
                if not left or not _is_passing(error):
                    raise
                logger.warning("tried again in %g s: %s", pause_s, error)
                sleep(pause_s)
                pause_s *= 4

    def _record(self, scored: ScoredChunk, tally: Tally, files: Mapping[str, int]) -> ChunkRecord:
        return ChunkRecord(
            number=scored.chunk.number,
            rows=tally.rows,
            errors=tally.errors,
            reasons=dict(tally.reasons),
            truncated=tally.truncated,
            tokens=tally.tokens,
            seconds=round(scored.seconds, 3),
            device=self._device,
            files=files,
            epoch=self._lease.epoch,
            finished=utc_now(),
            metrics=tally.metrics,
        )

    def _refuse_errors(self, tally: Tally) -> None:
        with self._lock:
            self._errors += tally.errors
            self._reasons.update(tally.reasons)
            self._reasons = Counter(dict(self._reasons.most_common(MOST_REASONS)))
            refuse_errors(self._config, self._limit, self._errors, self._reasons)


def _refuse_other_rows(scored: ScoredChunk, rows: int) -> None:
    chunk = scored.chunk
    if rows != chunk.rows:
        raise RowConservationError(
            f"chunk {chunk.number} has {chunk.rows} rows but {rows} were written; none of it "
            "was published. Run again; if it persists, the input changes while it is read"
        )


def _is_passing(error: OSError) -> bool:
    """Returns whether an error is worth a retry; those without an errno, from a store, may be."""
    if isinstance(error, LASTING_ERRORS):
        return False
    return error.errno is None or error.errno in PASSING_ERRNOS or isinstance(error, TimeoutError)


def refuse_errors(
    config: ScoringConfig, limit: int | None, errors: int, reasons: Counter[str]
) -> None:
    """Raises JobError, with the most frequent reasons, if more rows than allowed have an error."""
    if limit is not None and errors > limit:
        often = ", ".join(f"{n} x {reason!r}" for reason, n in reasons.most_common(3))
        raise JobError(
            f"{errors} rows have an error, and max_error_rows={config.max_error_rows!r} allows "
            f"{limit}: {often or 'see the output'}. Fix the cause and run with --retry-errors, or "
            "with --overwrite if the input changes; or raise the limit and run again to resume"
        )


def error_limit(config: ScoringConfig, total_rows: int) -> int | None:
    """Returns how many rows may have an error, None for any number."""
    allowed = config.max_error_rows
    if allowed is None:
        return None
    if allowed.endswith("%"):
        return math.floor(Fraction(allowed[:-1]) / 100 * total_rows)
    return int(allowed)


def utc_now() -> str:
    """Returns the current time in ISO 8601, for people; no decision depends on it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
