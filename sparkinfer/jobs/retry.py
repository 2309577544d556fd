"""Rescores only the rows with an error, and records their chunks again.

A chunk with such rows is read from its own published files. Workers pass its other rows on as they
are, so what they write is the next generation of the whole chunk. What functions made of a chunk
has no trace of its rows: it is read from the input and processed again as a whole.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from uuid import uuid4

import pyarrow as pa

from sparkinfer.exceptions import ConfigError, InputError, JobError, RowConservationError
from sparkinfer.jobs.committer import Recorder
from sparkinfer.jobs.hold import Hold
from sparkinfer.jobs.manifest import Manifest
from sparkinfer.jobs.records import ChunkRecord
from sparkinfer.jobs.result import Retried
from sparkinfer.models.scorer import NULL_TEXT
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan
from sparkinfer.plan.ports import ChunkTask, ScoredChunk
from sparkinfer.plan.prelude import Prelude
from sparkinfer.plan.snapshot import read_row_groups
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.reading import InputFolders, Piece
from sparkinfer.rows.rescoring import Rescoring
from sparkinfer.rows.tally import Tally
from sparkinfer.workers.statistics import read_statistics


def refuse_without_text(columns: Columns) -> None:
    """Raises ConfigError if the output would not hold the inputs of its rows."""
    kept = columns.carried.names
    for name in columns.inputs.names:
        if name not in kept:
            raise ConfigError(
                f"retry_errors=true with carry_cols={kept}: the texts are read from the output, "
                f"and {name!r} is not kept there; score again with --overwrite, with it in "
                "carry_cols if errors are to be retried"
            )


def retryable(record: ChunkRecord) -> int:
    """Returns how many rows of a chunk, at most, have an error other than a missing text."""
    return record.errors - record.reasons.get(NULL_TEXT, 0)


class ErrorRetry:
    """One retry on an output that is held.

    Args:
        prelude: of the run; its processor is needed only if there are rows to score again.
        hold: the output.
        manifest: of what it holds.
        folders: of the input's files.
    """

    def __init__(
        self, prelude: Prelude, hold: Hold, manifest: Manifest, folders: InputFolders
    ) -> None:
        self._prelude = prelude
        self._progress = prelude.progress
        self._hold = hold
        self._manifest = manifest
        self._folders = folders
        self._takes_whole = prelude.asked.replaces_rows
        self._measure = prelude.measure(manifest.labels)
        self._records = {
            record.number: record for record in hold.ledger.standing() if retryable(record)
        }
        self._waiting = set(self._records)
        self._recovered_rows = 0
        self._lock = threading.Lock()

    @property
    def rows(self) -> int:
        """How many rows are to be scored again, at most."""
        return sum(map(retryable, self._records.values()))

    def run(self) -> Retried:
        """Has the rows scored again; those that recover are recorded chunk by chunk.

        Raises:
            JobError: a worker failed for good, or the lease was lost; what recovered is recorded.
        """
        plan = self._plan()
        self._hold.insist(self._hold.sink.unfinish)
        self._recorder = Recorder(self._hold, self._measure, plan.workers.device_type)
        self._progress.expect(sum(map(self._read, self._records.values())), len(self._records))
        self._prelude.engine.score(plan, self._tasks(), self, self._progress)
        if self._waiting:
            raise RowConservationError(f"{len(self._waiting)} chunks were not scored; run again")
        verdict = self._prelude.processor.verdict
        return Retried(self.rows, self._recovered_rows, plan.workers, verdict)

    def commit(self, scored: ScoredChunk) -> None:
        """Records what was scored again, unless no row recovered."""
        before = self._records[scored.chunk.number]
        tally = self._recorder.counted(scored)
        errors = tally.errors
        if errors < before.errors:
            tally = _with_earlier(tally, before)
            errors = self._recorder.record(scored, tally, instead_of=before.files).errors
        else:
            self._hold.output.remove_folder(scored.staging)
        with self._lock:
            self._recovered_rows += before.errors - errors
            self._waiting.discard(before.number)
        self._progress.commit(self._read(before), errors)

    def _read(self, record: ChunkRecord) -> int:
        """Returns how many rows of a chunk are processed again."""
        return record.rows_read if self._takes_whole else retryable(record)

    def _plan(self) -> Plan:
        """Returns how chunks are scored again: from what readers see, and as it is written there.

        Columns of the output are read as the run has them, so that what it gives to its readers
        does not change.
        """
        prelude, output = self._prelude, self._hold.output
        # Notes of this call alone: what died in an earlier one is to be tried again.
        staging, notes = (self._hold.staging_folder("retry", name) for name in ("engine", "notes"))
        if self._takes_whole:
            return prelude.plan(self._folders, staging, notes)
        processor = Rescoring(prelude.processor)
        plan = prelude.plan(InputFolders(output.path), staging, notes)
        columns = plan.columns
        added = [field.remove_metadata() for field in columns.scored]
        inputs = pa.schema([*columns.inputs, *added])
        return replace(plan, processor=processor, columns=replace(columns, inputs=inputs))

    def _tasks(self) -> Iterator[ChunkTask]:
        for record in self._records.values():
            chunk = self._manifest.chunks[record.number]
            if not self._takes_whole:
                chunk = Chunk(record.number, self._pieces(record.files))
            attempt = f"{chunk.name}-{uuid4().hex}"
            yield ChunkTask(chunk, self._hold.staging_folder(attempt))

    def _pieces(self, files: Mapping[str, int]) -> tuple[Piece, ...]:
        output = self._hold.output.path
        try:
            found = read_row_groups(InputFolders(output), list(files), [], [])
        except InputError as error:
            raise JobError(
                f"output {output!r}: a file with rows to be scored again is gone or damaged; see "
                "to it that nothing else changes it, and run the same command to resume"
            ) from error
        return tuple(Piece(one.path, 0, len(one.rows), sum(one.rows)) for one in found)


def _with_earlier(tally: Tally, before: ChunkRecord) -> Tally:
    """Returns what a chunk's files hold, with what its rows took when they were scored before.

    Where that is not known, neither is the sum.
    """
    statistics = read_statistics(before.statistics)
    if before.statistics:
        statistics.add(tally.statistics)
    devices = Counter(before.devices)
    devices.update(tally.devices)
    return replace(tally, statistics=statistics, devices=dict(devices))
