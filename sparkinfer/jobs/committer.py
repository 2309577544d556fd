"""Makes a scored chunk part of the output: counted, recorded, shown to readers, in this order."""

from __future__ import annotations

from collections.abc import Collection

from sparkinfer.exceptions import RowConservationError
from sparkinfer.jobs.clock import utc_now
from sparkinfer.jobs.error_limit import ErrorLimit
from sparkinfer.jobs.hold import Hold
from sparkinfer.jobs.records import ChunkRecord
from sparkinfer.metrics.several import Measures
from sparkinfer.plan.ports import Publication, ScoredChunk
from sparkinfer.plan.progress import Progress
from sparkinfer.rows.tally import Tally, add_up
from sparkinfer.workers import heap

TRIM_EVERY = 32
"""Chunks after which the heap is trimmed: footers and records vary in size and fragment it."""


class Committer:
    """Commits the chunks of one run; thread-safe. A `ChunkLedger`.

    Args:
        recorder: records them.
        progress: receives what is committed.
        limit: of rows with an error.
    """

    def __init__(self, recorder: Recorder, progress: Progress, limit: ErrorLimit) -> None:
        self._recorder = recorder
        self._progress = progress
        self._limit = limit

    def commit(self, scored: ScoredChunk) -> None:
        """Checks, records and publishes a chunk.

        Raises:
            RowConservationError: its files do not hold as many rows as the chunk.
            TooManyErrorsError: more rows have an error, or batches failed, than allowed; the chunk
                is committed nonetheless.
            LeaseLostError: another run writes here now.
        """
        record = self._recorder.record(scored, self._recorder.counted(scored))
        self._progress.commit(record.rows_read, record.errors)
        self._limit.add(record.errors, record.reasons)
        self._limit.check_batches(self._progress.statistics().errored_batches)


class Recorder:
    """Checks, records and publishes scored chunks; thread-safe.

    What a chunk's files hold is what those say who wrote them; that they are whole, and have as
    many rows, is read from their footers.

    Args:
        hold: the output.
        measure: which metrics are computed.
        device: what the model runs on.
    """

    def __init__(self, hold: Hold, measure: Measures, device: str) -> None:
        self._hold = hold
        self._measure = measure
        self._device = device

    def counted(self, scored: ScoredChunk) -> Tally:
        """Returns what a chunk's files hold.

        Raises:
            RowConservationError: not as many rows as the chunk.
        """
        tally = add_up([file.tally for file in scored.files], self._measure)
        _refuse_other_rows(scored, tally.read, scored.chunk.rows)
        return tally

    def record(
        self, scored: ScoredChunk, tally: Tally, instead_of: Collection[str] = ()
    ) -> ChunkRecord:
        """Records and publishes a chunk; returns the record that is valid then; see `Ledger`.

        Raises:
            RowConservationError: its files do not hold as many rows as the chunk.
        """
        hold = self._hold
        names = [file.name for file in scored.files]
        publication = hold.insist(lambda: hold.sink.prepare(scored.chunk, scored.staging, names))
        _refuse_other_rows(scored, publication.rows, tally.rows)
        draft = self._draft(scored, tally, publication)
        record = hold.ledger.commit(draft, hold.insist, instead_of)
        hold.output.remove_folder(scored.staging)
        if scored.chunk.number % TRIM_EVERY == 0:
            heap.trim()
        return record

    def _draft(self, scored: ScoredChunk, tally: Tally, publication: Publication) -> ChunkRecord:
        return ChunkRecord(
            number=scored.chunk.number,
            rows=tally.rows,
            read=None if tally.read == tally.rows else tally.read,
            errors=tally.errors,
            reasons=dict(tally.reasons),
            truncated=tally.truncated,
            tokens=tally.tokens,
            seconds=round(scored.seconds, 3),
            device=self._device,
            files=publication.files,
            epoch=self._hold.epoch,
            finished=utc_now(),
            metrics=tally.metrics,
            sources=publication.sources,
            digests=publication.digests,
            statistics=tally.statistics.state(),
            distributions={name: one.state() for name, one in tally.distributions.items()},
            devices=tally.devices,
        )


def _refuse_other_rows(scored: ScoredChunk, rows: int, expected: int) -> None:
    if rows != expected:
        raise RowConservationError(
            f"chunk {scored.chunk.number} has {expected} rows but {rows} were written; none of it "
            "was published. Run again; if it persists, the input changes while it is read"
        )
