"""Replaces a chunk's published files with rewritten ones that hold the same rows.

At any time a reader finds each file complete, in its old or new state. Between replacing the first
file and writing the new record, the old record's sizes are wrong. So a note is written before the
first file: the record to come, and the sizes before. A run that finds a note later, once the writer
that left it is fenced off, tallies what the files hold now, old or new, and records that. Nothing
is scored again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import RowConservationError
from sparkinfer.jobs.lease import Lease
from sparkinfer.jobs.manifest import RECORDS_FOLDER, SCHEMA_VERSION, ChunkRecord, ManifestFolder
from sparkinfer.jobs.output import Output
from sparkinfer.logs import get_logger
from sparkinfer.metrics.measure import Measure
from sparkinfer.rows.tally import add_up, tally_file
from sparkinfer.storage import (
    WORK_FOLDER,
    join,
    names_in,
    read_text,
    remove,
    replace_text,
    sizes_in,
)

logger = get_logger(__name__)

NOTE_SUFFIX = ".replacing"


class Replacer:
    """Replaces published files of one output, whose lease is held.

    Args:
        config: what was scored.
        measure: which metrics are computed.
        output: holds the files.
        folder: holds the records.
        lease: held by the run.
    """

    def __init__(
        self,
        config: ScoringConfig,
        measure: Measure,
        output: Output,
        folder: ManifestFolder,
        lease: Lease,
    ) -> None:
        self._config = config
        self._measure = measure
        self._output = output
        self._folder = folder
        self._lease = lease
        self._notes = join(str(config.output), WORK_FOLDER, RECORDS_FOLDER)

    def replace(self, record: ChunkRecord, staging: str, names: Sequence[str]) -> ChunkRecord:
        """Replaces published files with staged ones of the same names; returns the new record.

        Args:
            record: of the chunk, whose published files exist.
            staging: folder of the staged files, which later epochs fence off.
            names: of the files.

        Raises:
            RowConservationError: the chunk would have another number of rows; nothing was replaced.
            LeaseLostError: another run writes here now.
        """
        sizes = sizes_in(staging)
        paths = {name: join(str(self._config.output), name) for name in record.files}
        paths.update({name: join(staging, name) for name in names})
        files = {name: sizes.get(name, size) for name, size in record.files.items()}
        new = self._measured(replace(record, files=files), list(paths.values()))
        if new.rows != record.rows:
            raise RowConservationError(
                f"chunk {record.number} has {record.rows} rows and would have {new.rows}; none "
                "of it was replaced. Run again; if this persists, score the chunk again: remove "
                f"{next(iter(record.files))!r} and run without --retry-errors"
            )
        self._lease.check()
        self._note(new, record.files)
        for name in names:
            self._output.replace(staging, name)
        # If another run has taken over, it has read the note and records what the files hold.
        self._lease.check()
        self._record(new)
        return new

    def recover(self) -> None:
        """Records what the files hold where a replacement was interrupted.

        Chunks whose files were also changed by others have no valid record after this. The output
        has been fenced, so the files no longer change.
        """
        for name in self._noted():
            found = self._read_note(name)
            record = found and self._now(*found)
            self._lease.check()
            if record:
                self._record(record)
            else:
                logger.warning("%s: its chunk's files have changed; dropping the note", name)
                remove(join(self._notes, name))

    def has_notes(self) -> bool:
        """Returns whether there is something to recover."""
        return bool(self._noted())

    def _now(self, new: ChunkRecord, before: Mapping[str, int]) -> ChunkRecord | None:
        """Returns the record of what the files hold now, None if one is neither old nor new."""
        sizes = self._output.sizes()
        if any(sizes.get(name) not in (before[name], new.files[name]) for name in new.files):
            return None
        paths = [join(str(self._config.output), name) for name in new.files]
        now = self._measured(replace(new, files={name: sizes[name] for name in new.files}), paths)
        return now if now.rows == new.rows else None

    def _measured(self, record: ChunkRecord, paths: Sequence[str]) -> ChunkRecord:
        tally = add_up((tally_file(path, self._measure) for path in paths), self._measure)
        return replace(
            record,
            rows=tally.rows,
            errors=tally.errors,
            reasons=dict(tally.reasons),
            truncated=tally.truncated,
            tokens=tally.tokens,
            metrics=tally.metrics,
        )

    def _record(self, record: ChunkRecord) -> None:
        self._folder.add(record)
        remove(self._note_path(record))

    def _note(self, new: ChunkRecord, before: Mapping[str, int]) -> None:
        values = {"schema_version": SCHEMA_VERSION, "before": before, "record": asdict(new)}
        replace_text(self._note_path(new), json.dumps(values), durable=True)

    def _note_path(self, record: ChunkRecord) -> str:
        return join(self._notes, f"{record.number:08d}{NOTE_SUFFIX}")

    def _noted(self) -> list[str]:
        return [name for name in names_in(self._notes) if name.endswith(NOTE_SUFFIX)]

    def _read_note(self, name: str) -> tuple[ChunkRecord, Mapping[str, int]] | None:
        try:
            values = json.loads(read_text(join(self._notes, name)) or "")
            if values["schema_version"] != SCHEMA_VERSION:
                return None
            new, before = ChunkRecord(**values["record"]), values["before"]
            return (new, before) if before.keys() == new.files.keys() else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
