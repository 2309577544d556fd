"""Makes a scored chunk part of the output: counted, published, recorded, in this order.

A crash between any two of these steps leaves the chunk done or to be done again. The lease is asked
before a file is moved; what an earlier writer had staged is gone by then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction

import pyarrow.compute as pc
import pyarrow.dataset as pads

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import JobError, RowConservationError
from sparkinfer.jobs.lease import Lease
from sparkinfer.jobs.manifest import ChunkRecord, ManifestFolder
from sparkinfer.jobs.metrics import measure
from sparkinfer.jobs.output import Output
from sparkinfer.plan.ports import ScoredChunk
from sparkinfer.plan.progress import Progress
from sparkinfer.storage import file_system, join

MOST_REASONS, REASON_LENGTH = 10, 200
"""That a record keeps: a model may have another reason for each row."""


@dataclass
class Counts:
    """What the files of a chunk hold."""

    rows: int = 0
    errors: int = 0
    truncated: int = 0
    tokens: int = 0


class Committer:
    """Commits the chunks of one run; used by one thread at a time.

    Args:
        config: what is scored.
        labels: of the model, in the order of the probabilities.
        device: what the model runs on.
        output: receives the files.
        folder: receives the records.
        lease: that the run holds.
        progress: is told of what is committed.
        total_rows: of the whole input.
        errors: rows with an error in the chunks that an earlier run committed.
    """

    def __init__(
        self,
        config: ScoringConfig,
        labels: Sequence[str],
        device: str,
        output: Output,
        folder: ManifestFolder,
        lease: Lease,
        progress: Progress,
        total_rows: int,
        errors: int,
    ) -> None:
        self._config = config
        self._labels = labels
        self._device = device
        self._output = output
        self._folder = folder
        self._lease = lease
        self._progress = progress
        self._limit = error_limit(config, total_rows)
        self._errors = errors
        self._reasons: Counter[str] = Counter()

    def commit(self, scored: ScoredChunk) -> None:
        """Counts, publishes and records a chunk.

        Raises:
            RowConservationError: its files do not hold the rows of the chunk.
            JobError: there are more rows with an error than are allowed; the chunk is committed.
            LeaseLostError: another run writes here now.
        """
        paths = [join(scored.staging, name) for name in scored.files]
        counts, reasons = count_scored(paths, self._config.output_prefix)
        if counts.rows != scored.chunk.rows:
            raise RowConservationError(
                f"chunk {scored.chunk.number} has {scored.chunk.rows} rows and {counts.rows} were "
                "written; nothing of it was published. Run again; if it persists, the input "
                "changes while it is read"
            )
        metrics = measure(self._config, self._labels, paths, self._config.metrics)
        self._lease.check()
        files = self._output.publish(scored.chunk, scored.staging, scored.files)
        # Whoever took over meanwhile has removed these files, for they have no record.
        self._lease.check()
        self._folder.add(
            ChunkRecord(
                number=scored.chunk.number,
                rows=counts.rows,
                errors=counts.errors,
                reasons=dict(reasons.most_common(MOST_REASONS)),
                truncated=counts.truncated,
                tokens=counts.tokens,
                seconds=round(scored.seconds, 3),
                device=self._device,
                files=files,
                epoch=self._lease.epoch,
                finished=utc_now(),
                metrics=metrics,
            )
        )
        self._output.drop(scored.staging)
        self._progress.commit(counts.rows, counts.errors)
        self._errors += counts.errors
        self._reasons.update(reasons)
        refuse_errors(self._config, self._limit, self._errors, self._reasons)


def count_scored(paths: Sequence[str], prefix: str) -> tuple[Counts, Counter[str]]:
    """Returns what scored files hold and the reasons of errors, read from three small columns.

    Args:
        paths: of the files.
        prefix: before the names of the scored columns.
    """
    counts = Counts()
    reasons: Counter[str] = Counter()
    columns = [prefix + name for name in ("n_tokens", "truncated", "error")]
    for path in paths:
        fs, name = file_system(path)
        dataset = pads.dataset(name, filesystem=fs, format="parquet")
        for batch in dataset.to_batches(columns=columns):
            n_tokens, truncated, error = batch.columns
            counts.rows += batch.num_rows
            counts.errors += batch.num_rows - error.null_count
            counts.truncated += pc.sum(truncated).as_py() or 0
            counts.tokens += pc.sum(n_tokens).as_py() or 0
            given = error.drop_null().to_pylist()
            reasons.update(reason[:REASON_LENGTH] for reason in given)
    return counts, reasons


def refuse_errors(
    config: ScoringConfig, limit: int | None, errors: int, reasons: Counter[str]
) -> None:
    """Raises JobError, with the most frequent reasons, if more rows than allowed have an error."""
    if limit is not None and errors > limit:
        often = ", ".join(f"{n} x {reason!r}" for reason, n in reasons.most_common(3))
        raise JobError(
            f"{errors} rows have an error, and max_error_rows={config.max_error_rows!r} allows "
            f"{limit}: {often or 'see the output'}. Mend the cause and run with --retry-errors, or "
            "with --overwrite if the input changes; or raise the limit and run again to go on"
        )


def refuse_recorded_errors(
    config: ScoringConfig, total_rows: int, records: Iterable[ChunkRecord]
) -> None:
    """Raises JobError if more rows than allowed have an error in the chunks that are done."""
    reasons: Counter[str] = Counter()
    errors = 0
    for record in records:
        errors += record.errors
        reasons.update(record.reasons)
    refuse_errors(config, error_limit(config, total_rows), errors, reasons)


def error_limit(config: ScoringConfig, total_rows: int) -> int | None:
    """Returns how many rows may have an error, None for any number."""
    allowed = config.max_error_rows
    if allowed is None:
        return None
    if allowed.endswith("%"):
        return math.floor(Fraction(allowed[:-1]) / 100 * total_rows)
    return int(allowed)


def utc_now() -> str:
    """Returns the time in ISO 8601, for people; no decision depends on it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
