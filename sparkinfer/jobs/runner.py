"""A whole run: check everything, cut the input, score and commit the chunks, return the result.

The same call resumes an interrupted run: chunks with a record are done.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from sparkinfer import __version__
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import (
    ConfigError,
    InputError,
    JobError,
    RowConservationError,
    SparkInferError,
)
from sparkinfer.files.formats import CSV
from sparkinfer.jobs.committer import (
    Committer,
    error_limit,
    refuse_errors,
    utc_now,
)
from sparkinfer.jobs.done import Done
from sparkinfer.jobs.input_state import JobInput, job_input
from sparkinfer.jobs.lease import Lease, read_holder
from sparkinfer.jobs.manifest import (
    Manifest,
    ManifestFolder,
    refuse_other_settings,
)
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.replacement import Replacer
from sparkinfer.jobs.result import Retried, RunResult, with_retried
from sparkinfer.jobs.retry import ErrorRetry, refuse_without_text
from sparkinfer.logs import get_logger
from sparkinfer.metrics.measure import Measure, States
from sparkinfer.plan.input_chunks import InputChunks
from sparkinfer.plan.inputs import type_name
from sparkinfer.plan.ports import ChunkTask
from sparkinfer.plan.prelude import Prelude
from sparkinfer.plan.progress import Progress
from sparkinfer.redaction import without_secrets
from sparkinfer.rows.reading import ChunkReader
from sparkinfer.storage import SUCCESS_FILE
from sparkinfer.workers.statistics import ScoringStatistics

logger = get_logger(__name__)

LABELS_LOOKED_AT = 1000
"""Rows whose true labels are looked at before the first row is scored."""

Display = Callable[[Progress], AbstractContextManager[object]]
"""Shows a progress for as long as its context is open."""


def run_job(prelude: Prelude, display: Display = nullcontext) -> RunResult:
    """Scores the part of the input that is not done and commits it to the output.

    Everything that can be wrong with the call is checked before the first row is scored.

    Args:
        prelude: what to do; the configuration's `output` is required.
        display: shows the progress while rows are scored.

    Raises:
        UsageError: the call cannot work; nothing was written.
        JobError: the job had started and failed; the same call resumes it.
    """
    started = time.monotonic()
    config = prelude.config
    if config.output is None:
        raise ConfigError("option 'output' is required; give --output FOLDER or output=...")
    prelude.check()
    output = Output(config.output)
    output.check(config.overwrite)
    columns, files = prelude.asked_columns, prelude.table.files
    if config.retry_errors:
        refuse_without_text(columns)
    if files is not None:
        output.refuse_overlap(files.found.paths)
    chunks = InputChunks(prelude, output.input_folder)
    read = job_input(prelude, chunks, output.input_folder)
    _ = (
        prelude.workers,
        prelude.resolved,
    )  # so that errors in them are found before anything is written
    output.prepare()
    lease = Lease(output.lease_folder)
    try:
        lease.acquire()
        return _Run(prelude, output, lease, started, chunks, read).run(display)
    finally:
        try:
            output.remove_staging(lease.epoch)
        finally:
            lease.release()
            _remove_empty(output, lease)


def _remove_empty(output: Output, lease: Lease) -> None:
    """Removes what a run that did nothing left, unless another run holds the output now."""
    holder = read_holder(output.lease_folder)
    if holder is not None and holder.released and holder.epoch == lease.epoch:
        with suppress(OSError):
            output.remove_empty()


class _Run:
    """One run on an output whose lease it holds."""

    def __init__(
        self,
        prelude: Prelude,
        output: Output,
        lease: Lease,
        started: float,
        chunks: InputChunks,
        read: JobInput,
    ) -> None:
        self._config = prelude.config
        self._prelude = prelude
        self._output = output
        self._lease = lease
        self._started = started
        self._folder = ManifestFolder(str(self._config.output))
        self._chunks = chunks
        self._input = read

    def run(self, display: Display) -> RunResult:
        """Does what is not done yet and returns the result; see `run_job`."""
        settings = _settings(self._prelude)
        is_larger = False
        manifest = None if self._config.overwrite else self._folder.read()
        retried = Retried() if self._config.retry_errors else None
        if manifest is not None:
            refuse_other_settings(str(self._config.output), manifest.settings, settings)
            is_larger = self._input.is_larger(manifest)
            self._recover(manifest)
            if retried is not None:
                retried = self._retry(manifest, display)
            done = self._done(manifest)
            limit = error_limit(self._config, manifest.rows)
            refuse_errors(self._config, limit, done.errors, done.reasons)
            if not is_larger and len(done.numbers) == len(manifest.chunks):
                return with_retried(self._nothing_to_do(manifest), retried)
        settings |= self._prelude.processor.settings()
        if manifest is not None:
            refuse_other_settings(str(self._config.output), manifest.settings, settings)
        with _job_errors():
            self._lease.check()  # the gate may have taken minutes
            self._output.fence(self._lease.epoch)
            if manifest is None:
                manifest = self._begin(settings)
            elif is_larger:
                manifest = self._extend(manifest)
            return with_retried(self._score(manifest, display), retried)

    def _done(self, manifest: Manifest) -> Done:
        done = Done()
        for record in self._folder.records(self._output.sizes):
            done.add(record, manifest.chunks)
        return done

    def _recover(self, manifest: Manifest) -> None:
        """Records what files hold whose replacement by a retry was interrupted."""
        measure = self._prelude.measure(manifest.labels)
        replacer = Replacer(self._config, measure, self._output, self._folder, self._lease)
        if replacer.has_notes():
            with _job_errors():
                self._output.fence(self._lease.epoch)
                replacer.recover()

    def _retry(self, manifest: Manifest, display: Display) -> Retried:
        """Rescores the rows with an error in the chunks that have a record."""
        limits = self._chunks.limits
        retry = ErrorRetry(self._prelude, manifest, limits, self._output, self._folder, self._lease)
        with _job_errors():
            is_there_any = retry.stage()
        if not is_there_any:
            return Retried()
        settings = self._prelude.processor.settings()
        refuse_other_settings(str(self._config.output), manifest.settings, settings)
        with _job_errors():
            return retry.run(display)

    def _begin(self, settings: Mapping[str, Any]) -> Manifest:
        """Clears the output and writes the manifest of a new run."""
        self._output.remove_published()
        self._output.remove_records()
        processor = self._prelude.processor
        manifest = Manifest(
            settings=settings,
            verdict=asdict(processor.verdict) if processor.verdict is not None else {},
            labels=processor.labels,
            input_files=(),
            read_files=(),
            chunks=(),
            created=utc_now(),
            written_by=f"sparkinfer {__version__}",
        )
        return self._extend(manifest)

    def _extend(self, manifest: Manifest) -> Manifest:
        """Writes a manifest with the chunks of what is new in the input added."""
        manifest = self._input.extend(manifest)
        self._lease.check()  # copying may have taken hours
        self._folder.write(manifest)
        return manifest

    def _score(self, manifest: Manifest, display: Display) -> RunResult:
        """Scores the chunks without a record."""
        self._output.unfinish()
        done = self._done(manifest)
        self._output.remove_published(keep=done.files)
        progress = Progress(manifest.rows, len(manifest.chunks))
        progress.skip(done.rows, len(done.numbers))
        staging = self._output.staging_folder(self._lease.epoch, "engine")
        plan = self._prelude.plan(self._chunks.folders, staging)
        committer = Committer(
            self._config,
            plan.measure,
            plan.workers.device_type,
            self._output,
            self._folder,
            self._lease,
            progress,
            total_rows=manifest.rows,
            errors=done.errors,
        )
        self._warn_of_strange_labels(manifest, plan.measure)
        with display(progress):
            tasks = self._tasks(manifest, done)
            self._prelude.engine.score(plan, tasks, committer, progress)
            progress.end()
        result = replace(
            self._finished(manifest),
            rows_before=done.rows,
            phases=progress.phases,
            workers=plan.workers,
            verdict=plan.processor.verdict,
            statistics=progress.statistics(),
            devices=progress.devices,
        )
        return replace(result, seconds=time.monotonic() - self._started)

    def _warn_of_strange_labels(self, manifest: Manifest, measure: Measure) -> None:
        """Says so before hours of scoring if it looks as if there will be no metrics."""
        labels = measure.look(self._first_labels(manifest))
        problem = labels.problem() if labels is not None else None
        if problem is not None:
            logger.warning(
                "label_col=%r: in the first rows, %s; the run goes on, and reports no metrics "
                "unless later rows have such a label",
                measure.label_col,
                problem,
            )

    def _first_labels(self, manifest: Manifest) -> Iterator[pa.Array]:
        """Yields the true labels of the first rows."""
        fields = self._prelude.columns.carried
        reader = ChunkReader(
            self._chunks.folders, pa.schema([fields.field(self._config.label_col)])
        )
        pieces = (piece for chunk in manifest.chunks for piece in chunk.pieces)
        left = LABELS_LOOKED_AT
        with suppress(JobError):  # the chunk's own attempt says more
            for batch in reader.read(pieces):
                yield batch.column(0).slice(0, left)
                left -= batch.num_rows
                if left <= 0:
                    return

    def _tasks(self, manifest: Manifest, done: Done) -> Iterator[ChunkTask]:
        """Yields the chunks that are not done, lazily."""
        deaths = self._folder.deaths()
        for chunk in manifest.chunks:
            if chunk.number not in done.numbers:
                attempt = f"{chunk.name}-{uuid.uuid4().hex}"
                staging = self._output.staging_folder(self._lease.epoch, attempt)
                yield ChunkTask(chunk, staging, deaths.get(chunk.number, 0))

    def _nothing_to_do(self, manifest: Manifest) -> RunResult:
        result = self._finished(manifest)
        return replace(result, rows_before=result.rows, seconds=time.monotonic() - self._started)

    def _finished(self, manifest: Manifest) -> RunResult:
        """Marks the output as complete unless it already is; returns the sum of the records.

        Raises:
            ResumeError: the input has changed since the run began.
            RowConservationError: the records do not match the chunks.
        """
        done = Done()

        def states() -> Iterator[States]:
            for record in self._folder.records(self._output.sizes):
                done.add(record, manifest.chunks)
                yield record.metrics

        measured = self._prelude.measure(manifest.labels).values(states())
        _refuse_missing(manifest, done)
        self._finish(manifest, done.files)
        return RunResult(
            output=str(self._config.output),
            rows=done.rows,
            error_rows=done.errors,
            metrics=measured.metrics,
            metrics_problem=measured.problem,
            rows_before=0,
            seconds=0.0,
            phases={},
            workers=None,
            verdict=None,
            model_fingerprint=self._prelude.resolved.settings().get("model_fingerprint", ""),
            statistics=ScoringStatistics(),
            devices=(),
            notes=(*self._chunks.notes, *_copied_when(manifest)),
        )

    def _finish(self, manifest: Manifest, files: Iterable[str]) -> None:
        is_finished = self._output.is_finished()
        if not is_finished:
            self._input.check_at_end(manifest)
        # Remove what no record names: on an object store, an earlier writer's copy may end late.
        self._lease.check()
        self._output.remove_published(keep={SUCCESS_FILE, *files})
        if not is_finished:
            self._output.finish()


@contextmanager
def _job_errors() -> Iterator[None]:
    """Turns whatever is raised after the start into a JobError."""
    try:
        yield
    except InputError:  # found while the input was copied or cut: nothing has been scored
        raise
    except SparkInferError as error:
        if isinstance(error, JobError):
            raise
        raise JobError(error.message) from error
    except Exception as error:
        raise JobError(f"{type(error).__name__}: {error}") from error


def _refuse_missing(manifest: Manifest, done: Done) -> None:
    missing = [chunk.number for chunk in manifest.chunks if chunk.number not in done.numbers]
    if missing or done.wrong:
        raise RowConservationError(
            f"{len(done.numbers)} records for {len(manifest.chunks)} chunks, those of chunks "
            f"{[*missing, *done.wrong][:10]} missing or with a different number of rows; run again "
            "to score these"
        )


def _settings(prelude: Prelude) -> dict[str, Any]:
    """Returns what determines the output before the processor is tried out, as JSON values."""
    config = prelude.config
    carried = config.carry_cols
    columns = prelude.asked_columns.carried
    is_csv = prelude.table.input_format == CSV
    return {
        "input": _shown_input(config),
        "input_col": config.input_col,
        "label_col": config.label_col,
        "carry_cols": None if carried is None else list(carried),
        "columns": {field.name: type_name(field.type) for field in columns},
        "output_prefix": config.output_prefix,
        "metrics": list(config.metrics),
        **({f"csv.{key}": value for key, value in asdict(config.csv).items()} if is_csv else {}),
        **prelude.resolved.settings(),
    }


def _copied_when(manifest: Manifest) -> list[str]:
    if manifest.table is None:
        return []
    return [f"the input is scored as it was copied at {manifest.table.taken}"]


def _shown_input(config: ScoringConfig) -> str | list[str]:
    if isinstance(config.input, tuple):
        return [without_secrets(path) for path in config.input]
    return without_secrets(str(config.input))
