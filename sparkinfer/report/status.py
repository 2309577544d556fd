"""What part of a run is done and what is left, read from its output alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sparkinfer.exceptions import OutputError, SparkInferError
from sparkinfer.jobs.claims import Holder, read_holder
from sparkinfer.jobs.done import Done
from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.manifest import Manifest, read_manifest
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.records import ChunkRecord, Records
from sparkinfer.jobs.summary import describe_metrics
from sparkinfer.metrics.measure import Measure, Measured, States
from sparkinfer.metrics.several import Measures, SeveralMeasures
from sparkinfer.models.tasks import TASKS
from sparkinfer.plan.ports import Sink
from sparkinfer.plan.wording import format_seconds
from sparkinfer.redaction import without_secrets
from sparkinfer.sinks.arrivals import FilesAndMore, KnownArrivals, NoFiles
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.terminal import printable

BEAT_IS_OLD_S = 60.0
"""A writer whose last heartbeat is older is not considered alive."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        output: its output folder.
        state: `finished`, `running`, `broken off`, or `ready to finish` if every chunk is recorded
            and only the completion mark is missing.
        settings: those that determine the output, by name.
        created: when the run began.
        overwrites: whether it was asked to replace an earlier one.
        rows: rows of the input that are done.
        rows_made: rows that the output has for them.
        total_rows: rows of the input.
        chunks: chunks that are done.
        total_chunks: chunks of the input.
        missing: numbers of the first chunks that are not done.
        errors: rows among those done that have an error.
        reasons: the most frequent error reasons, and how often each occurs.
        truncated: rows among those done whose text was truncated.
        tokens: tokens of the rows that are done.
        rows_per_s: of the newest writer, from the end of its first chunk to the end of its last;
            None if it cannot be computed.
        metrics: over the rows that are done; only the package's own, since nothing is imported that
            an output names.
        metrics_problem: why there are none although there are labels, else None.
        metrics_of_run: names of the metrics that only the run itself shows.
        writer: the process that writes there, or did last; None if unknown.
        vector_store: store that gets the vectors as well; None: none.
        vector_chunks: chunks whose vectors have arrived there, as far as the output says.
    """

    output: str
    state: str
    settings: dict[str, Any]
    created: str
    overwrites: bool
    rows: int
    rows_made: int
    total_rows: int
    chunks: int
    total_chunks: int
    missing: tuple[int, ...]
    errors: int
    reasons: dict[str, int]
    truncated: int
    tokens: int
    rows_per_s: float | None
    metrics: dict[str, float]
    metrics_problem: str | None
    metrics_of_run: tuple[str, ...]
    writer: Holder | None
    vector_store: str | None
    vector_chunks: int

    def as_dict(self) -> dict[str, Any]:
        """Returns the status as plain values, ready for JSON."""
        return asdict(self)


MOST_MISSING, MOST_REASONS = 20, 10


def read_status(path: str) -> RunStatus:
    """Returns the status of the run that wrote an output; changes nothing.

    Raises:
        OutputError: no run wrote there.
        ResumeError: its manifest is damaged.
    """
    output = Output(path)
    manifest = read_manifest(path)
    if manifest is None:
        raise OutputError(
            f"output {path!r} holds no manifest of a run; give the output folder of a run"
        )
    arrivals, store = KnownArrivals(path), manifest.settings.get("vectors.store")
    sink = _sink(path, manifest, arrivals)
    ledger = Ledger(Records(path, manifest.run), sink, manifest.chunks)
    done, rate, arrived = Done(), _RecentRate(), Counter[bool]()

    def states() -> Iterator[States]:
        for record in ledger.standing():
            done.add(record)
            rate.add(record)
            arrived[arrivals.has_arrived(record.number, record.publication)] += 1
            yield record.metrics

    measured = _measured(manifest, states())
    missing = [chunk.number for chunk in manifest.chunks if chunk.number not in done.numbers]
    writer = read_holder(output.lease_folder)
    return RunStatus(
        output=without_secrets(path),
        state=_state(sink.is_finished(), bool(missing), writer),
        settings=dict(manifest.settings),
        created=manifest.created,
        overwrites=manifest.overwrites,
        rows=done.read,
        rows_made=done.rows,
        total_rows=manifest.rows,
        chunks=len(manifest.chunks) - len(missing),
        total_chunks=len(manifest.chunks),
        missing=tuple(missing[:MOST_MISSING]),
        errors=done.errors,
        reasons=dict(done.reasons.most_common(MOST_REASONS)),
        truncated=done.truncated,
        tokens=done.tokens,
        rows_per_s=rate.rows_per_s,
        metrics=measured.metrics,
        metrics_problem=measured.problem,
        metrics_of_run=_metrics_of_run(manifest),
        writer=writer,
        vector_store=store,
        vector_chunks=arrived[True],
    )


def _sink(path: str, manifest: Manifest, arrivals: KnownArrivals) -> Sink:
    files = ParquetFolder(path, manifest.run)
    if manifest.settings.get("vectors.store") is None:
        return files
    keeps_files = manifest.settings.get("vectors.parquet")
    return FilesAndMore(files, [arrivals]) if keeps_files else NoFiles(files, path, [arrivals])


def describe_status(status: RunStatus) -> str:
    """Returns the status for people, one fact per line."""
    share = status.rows / status.total_rows if status.total_rows else 1.0
    lines = [
        f"state      {status.state}{_writer(status.writer)}",
        f"rows       {status.rows:,} of {status.total_rows:,} ({share:.1%}), "
        f"{status.chunks:,} of {status.total_chunks:,} chunks",
    ]
    if status.rows_made != status.rows:
        lines.append(f"           which gave {status.rows_made:,} rows")
    if status.missing:
        more = status.total_chunks - status.chunks - len(status.missing)
        listed = ", ".join(map(str, status.missing)) + (f" and {more:,} more" if more else "")
        lines.append(f"missing    chunks {listed}")
    if status.rows_per_s:
        left = (status.total_rows - status.rows) / status.rows_per_s
        to_do = f"; {format_seconds(left)} for the rest at this rate" if left else ""
        lines.append(f"rate       {status.rows_per_s:,.0f} rows/s{to_do}")
    lines.append(f"errors     {status.errors:,} rows")
    lines += [f"           {count:,} x {reason}" for reason, count in status.reasons.items()]
    if status.tokens:
        lines.append(f"tokens     {status.tokens:,}; {status.truncated:,} rows truncated")
    lines += describe_metrics(status.metrics, status.metrics_problem)
    lines += [f"{name}: shown by the run itself" for name in status.metrics_of_run]
    if status.vector_store is not None:
        lines.append(f"vectors    {status.vector_chunks:,} chunks in {status.vector_store}")
    lines.append(f"started    {status.created}")
    lines.append(f"output     {status.output}")
    return "\n".join(map(printable, lines))


def _state(is_finished: bool, is_missing: bool, writer: Holder | None) -> str:
    may_live = writer is not None and not writer.released and not writer.is_gone
    beat_s = writer.since_beat_s if writer is not None and may_live else None
    if beat_s is not None and beat_s < BEAT_IS_OLD_S:
        return "running"
    if is_missing:
        return "broken off"
    return "finished" if is_finished else "ready to finish"


def _writer(writer: Holder | None) -> str:
    if writer is None or writer.released or writer.since_beat_s is None:
        return ""
    return (
        f" (process {writer.pid} on {writer.host}, last heartbeat "
        f"{format_seconds(writer.since_beat_s)} ago)"
    )


class _RecentRate:
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


def _measured(manifest: Manifest, states: Iterator[States]) -> Measured:
    """Returns the package's own metrics over the rows of all states, which are read to the last."""
    measures = {
        name: _measure(settings, _labels_of(manifest, name))
        for name, settings in _settings_by_model(manifest).items()
    }
    measure: Measures = measures[""] if "" in measures else SeveralMeasures(measures)
    try:
        return measure.values(states)
    except (SparkInferError, ValueError, KeyError, TypeError, AttributeError) as error:
        for _ in states:
            pass
        return Measured(problem=f"their records cannot be added up ({error})")


def _measure(settings: Mapping[str, Any], labels: tuple[str, ...]) -> Measure:
    task = TASKS.get(str(settings.get("task")))
    evaluation = task.evaluation if task is not None else None
    prefix = settings.get("output_prefix", "")
    return Measure(evaluation, settings.get("label_col"), prefix, labels)


def _settings_by_model(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Returns the settings of each model by its name; of a model alone, by an empty name."""
    settings = manifest.settings
    names = settings.get("models")
    if names is None:
        return {"": dict(settings)}
    return {
        name: {
            key.removeprefix(f"models.{name}."): value
            for key, value in settings.items()
            if key.startswith(f"models.{name}.")
        }
        for name in names
    }


def _labels_of(manifest: Manifest, name: str) -> tuple[str, ...]:
    labels = manifest.labels
    return labels.get(name, ()) if isinstance(labels, Mapping) else labels


def _metrics_of_run(manifest: Manifest) -> tuple[str, ...]:
    """Returns the metrics whose code the run imported: of the user, of a task that is not ours."""
    found: list[str] = []
    for name, settings in _settings_by_model(manifest).items():
        task, label = str(settings.get("task")), f"{name}: " if name else ""
        if settings.get("label_col") is None:
            continue
        if task not in TASKS:
            found.append(f"{label}metrics of task {task!r}")
        found += [f"{label}metric {metric!r}" for metric in settings.get("metrics") or ()]
    return tuple(found)
