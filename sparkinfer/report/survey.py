"""One pass over the manifest and the records of an output; it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sparkinfer.exceptions import OutputError
from sparkinfer.jobs.claims import read_holder
from sparkinfer.jobs.done import Done
from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.manifest import Manifest, read_manifest
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.records import ChunkRecord, Records
from sparkinfer.plan.ports import Sink
from sparkinfer.report.own_metrics import OwnMetrics
from sparkinfer.sinks.arrivals import FilesAndMore, KnownArrivals, NoFiles
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.workers.statistics import ScoringStatistics, read_statistics


class Survey:
    """What an output holds, added up.

    Args:
        path: the output folder.
        see: called with each record that stands, in order.

    Attributes:
        path: as given.
        manifest: what the run has to do.
        done: the sum of the records.
        rate: of the newest writer.
        statistics: counts and seconds of the workers, of the records that tell.
        metrics: the package's own.
        vector_chunks: chunks whose vectors have arrived in a store, as far as the output says.
        is_finished: whether readers can tell that all is there.
        writer: the process that writes there, or did last; None if unknown.

    Raises:
        OutputError: no run wrote there.
        ResumeError: its manifest is damaged.
    """

    def __init__(self, path: str, see: Callable[[ChunkRecord], None] = lambda record: None) -> None:
        self.path = path
        self.manifest = _manifest(path)
        self.done, self.rate, self.statistics = Done(), RecentRate(), ScoringStatistics()
        self.metrics = OwnMetrics(self.manifest)
        self.vector_chunks = 0
        arrivals = KnownArrivals(path)
        sink = _sink(path, self.manifest, arrivals)
        records = Records(path, self.manifest.run)
        for record in Ledger(records, sink, self.manifest.chunks).standing():
            self._add(record)
            self.vector_chunks += arrivals.has_arrived(record.number, record.publication)
            see(record)
        self.writer = read_holder(Output(path).lease_folder)
        self.is_finished = sink.is_finished()

    def _add(self, record: ChunkRecord) -> None:
        self.done.add(record)
        self.rate.add(record)
        self.statistics.add(read_statistics(record.statistics))
        self.metrics.add(record.metrics)

    @property
    def missing(self) -> list[int]:
        """Numbers of the chunks that are not done."""
        done = self.done.numbers
        return [chunk.number for chunk in self.manifest.chunks if chunk.number not in done]


def _manifest(path: str) -> Manifest:
    manifest = read_manifest(path)
    if manifest is None:
        raise OutputError(
            f"output {path!r} holds no manifest of a run; give the output folder of a run"
        )
    return manifest


def _sink(path: str, manifest: Manifest, arrivals: KnownArrivals) -> Sink:
    files = ParquetFolder(path, manifest.run)
    if manifest.settings.get("vectors.store") is None:
        return files
    keeps_files = manifest.settings.get("vectors.parquet")
    return FilesAndMore(files, [arrivals]) if keeps_files else NoFiles(files, path, [arrivals])


class RecentRate:
    """Rows per second between the ends of the first chunk and the last of the newest writer."""

    def __init__(self) -> None:
        self._epoch = -1
        self._first: ChunkRecord | None = None
        self._last: ChunkRecord | None = None
        self._rows = 0

    def add(self, record: ChunkRecord) -> None:
        """Adds a record; records may come in any order."""
        if record.epoch < self._epoch:
            return
        if record.epoch > self._epoch:
            self._epoch, self._rows, self._first, self._last = record.epoch, 0, record, record
        self._rows += record.rows_read
        if self._first is None or _finished(record) < _finished(self._first):
            self._first = record
        if self._last is None or _finished(record) > _finished(self._last):
            self._last = record

    @property
    def rows_per_s(self) -> float | None:
        """The rate; None if it cannot be computed."""
        if self._first is None or self._last is None:
            return None
        seconds = (_finished(self._last) - _finished(self._first)).total_seconds()
        return (self._rows - self._first.rows_read) / seconds if seconds > 0 else None


def _finished(record: ChunkRecord) -> datetime:
    return datetime.fromisoformat(record.finished)
