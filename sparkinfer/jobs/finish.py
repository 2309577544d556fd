"""The end of a run: everything is there once, and marked as complete."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from sparkinfer.exceptions import RowConservationError
from sparkinfer.jobs.done import MOST_REASONS, Done
from sparkinfer.jobs.hold import Hold
from sparkinfer.jobs.input_state import JobInput
from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.manifest import Manifest
from sparkinfer.jobs.pinned import notes_of_versions
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.vectors import count_vectors
from sparkinfer.metrics.measure import Measured, States
from sparkinfer.metrics.several import Measures
from sparkinfer.plan.prelude import Prelude
from sparkinfer.rows.several import members_of
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.workers.statistics import ScoringStatistics


def finish(
    prelude: Prelude, manifest: Manifest, hold: Hold, read: JobInput, notes: Sequence[str]
) -> RunResult:
    """Marks the output as complete unless it already is; returns the sum of the records.

    Args:
        prelude: of the run.
        manifest: what it had to do.
        hold: the output.
        read: its input.
        notes: what the user should know of how the input was read.

    Raises:
        ResumeError: the input has changed since the run began.
        RowConservationError: a chunk has no record.
        OutputError: readers would see what no run wrote, or other vectors.
    """
    measure = prelude.measure(manifest.labels)
    done, measured = hold.insist(lambda: _sum(measure, hold.ledger))
    _refuse_missing(manifest, done)
    vectors = count_vectors(prelude, hold.delivery, done)
    _mark(manifest, hold, read, done.files)
    return RunResult(
        run=manifest.run,
        output=str(prelude.config.output),
        rows=done.rows,
        rows_read=done.read,
        error_rows=done.errors,
        error_reasons=dict(done.reasons.most_common(MOST_REASONS)),
        metrics=measured.metrics,
        metrics_problem=measured.problem,
        rows_before=0,
        seconds=0.0,
        phases={},
        workers=None,
        verdict=None,
        model_fingerprint=_fingerprint(prelude),
        statistics=ScoringStatistics(),
        devices=(),
        notes=(*notes, *_copied_when(manifest), *notes_of_versions(prelude)),
        labels={name: one.labels for name, one in done.distributions.items() if one.labels},
        vector_store=manifest.settings.get("vectors.store"),
        vectors=vectors,
    )


def _fingerprint(prelude: Prelude) -> str:
    """Returns the fingerprint of the model; of several, each with its name."""
    found = {
        name: one.settings().get("model_fingerprint", "")
        for name, one in members_of(prelude.resolved).items()
    }
    return ", ".join(f"{name}={one}" if name else one for name, one in found.items() if one)


def _sum(measure: Measures, ledger: Ledger) -> tuple[Done, Measured]:
    """Returns what the records say, added up."""
    done = Done()

    def states() -> Iterator[States]:
        for record in ledger.standing():
            done.add(record)
            yield record.metrics

    measured = measure.values(states())
    return done, measured


def _mark(manifest: Manifest, hold: Hold, read: JobInput, files: Collection[str]) -> None:
    is_finished = hold.sink.is_finished()
    if not is_finished:
        read.check_at_end(manifest)
        hold.output.forget(manifest, hold.insist)
    # What no record names: on an object store, an earlier writer's copy may end late.
    sink = ParquetFolder(hold.output.path)
    late = [n for n in sink.of_runs({manifest.run, *manifest.replaced}) if n not in files]
    hold.insist(lambda: sink.remove(late))
    sink.refuse_strangers({manifest.run})
    if not is_finished:
        hold.insist(hold.sink.finish)


def _refuse_missing(manifest: Manifest, done: Done) -> None:
    missing = [chunk.number for chunk in manifest.chunks if chunk.number not in done.numbers]
    if missing:
        raise RowConservationError(
            f"{len(done.numbers)} records for {len(manifest.chunks)} chunks, those of chunks "
            f"{missing[:10]} missing or with a different number of rows; run again to score these"
        )


def _copied_when(manifest: Manifest) -> list[str]:
    if manifest.table is None:
        return []
    return [f"the input is scored as it was copied at {manifest.table.taken}"]
