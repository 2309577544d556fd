"""A whole run: check everything, cut the input, score and commit the chunks, say what was done.

The same call goes on with a run that was broken off: chunks with a record are done.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from sparkinfer import __version__
from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import (
    ConfigError,
    JobError,
    RowConservationError,
    SparkInferError,
    UsageError,
)
from sparkinfer.jobs.committer import Committer, refuse_recorded_errors, utc_now
from sparkinfer.jobs.lease import Lease, read_holder
from sparkinfer.jobs.manifest import (
    ChunkRecord,
    Manifest,
    ManifestFolder,
    refuse_other_input,
    refuse_other_settings,
)
from sparkinfer.jobs.metrics import check_metrics, combine
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.replacement import Replacer
from sparkinfer.jobs.retry import (
    ErrorRetry,
    MakeEngine,
    Retried,
    refuse_without_text,
)
from sparkinfer.models.acceleration import Verdict, check_available
from sparkinfer.models.sources import ModelSource, resolve
from sparkinfer.models.tasks import get_task
from sparkinfer.plan.chunks import DEFAULT_LIMITS, Chunk, ChunkLimits, RowGroups, cut_chunks
from sparkinfer.plan.copies import should_copy
from sparkinfer.plan.ports import ChunkTask, Engine, InputTable, ScoringRun, Workers
from sparkinfer.plan.progress import SCORE, DeviceProgress, Progress
from sparkinfer.plan.snapshot import InputFile, input_root, list_files, read_row_groups
from sparkinfer.redaction import without_secrets
from sparkinfer.rows.copying import FileCopier
from sparkinfer.rows.reading import COPIES, InputFolders
from sparkinfer.storage import SUCCESS_FILE, join
from sparkinfer.workers.statistics import ScoringStatistics

Display = Callable[[Progress], AbstractContextManager[object]]
"""Shows a progress for as long as its context is open."""


@dataclass(frozen=True)
class RunResult:
    """What the output holds, and what this run did for it.

    Attributes:
        output: folder with the scored Parquet files.
        rows: rows in them, those with an error included.
        error_rows: rows among them that could not be scored.
        metrics: by name, over all rows with a known label; empty without a label column.
        rows_before: rows among them that an earlier run had committed.
        seconds: from the call to the end.
        phases: of these, what each part of the engine's work took: `score`, and before it
            `prepare` and `start` where an engine has them.
        workers: replicas that scored, and on what; None if there was nothing to do.
        verdict: how the model was run, and what was tried before; None if there was nothing to do.
        model_fingerprint: hash of the model's files.
        statistics: counts and seconds, summed over the workers that could report.
        devices: what the model ran on, with the rows of each.
        retried_rows: rows with an error that this run rescored; None if it was not asked to.
        mended_rows: rows among these that have no error any more.
    """

    output: str
    rows: int
    error_rows: int
    metrics: Mapping[str, float]
    rows_before: int
    seconds: float
    phases: dict[str, float]
    workers: Workers | None
    verdict: Verdict | None
    model_fingerprint: str
    statistics: ScoringStatistics
    devices: Sequence[DeviceProgress]
    retried_rows: int | None = None
    mended_rows: int = 0

    @property
    def rows_per_s(self) -> float:
        """Rows per second of scoring, of the rows that this run scored."""
        scoring_s = self.phases.get(SCORE, 0.0)
        rows = self.rows - self.rows_before + (self.retried_rows or 0)
        return rows / scoring_s if scoring_s else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as plain values, ready for JSON."""
        return asdict(self)


def run_job(
    config: ScoringConfig, make_engine: MakeEngine, display: Display = nullcontext
) -> RunResult:
    """Scores what is missing of the input and commits it to the output.

    Everything that can be wrong with the call is checked before the first row is scored.

    Args:
        config: what to do; `output` is required.
        make_engine: makes what moves the rows; called again for rows that are rescored.
        display: shows the progress while rows are scored.

    Raises:
        UsageError: the call cannot work; nothing was written.
        JobError: the job had started and failed; the same call goes on with it.
    """
    started = time.monotonic()
    if config.output is None:
        raise ConfigError("option 'output' is required; give --output FOLDER or output=...")
    get_task(config.task)
    check_metrics(config.metrics)
    check_available(config)
    output = Output(config.output)
    output.check(config.overwrite)
    engine = make_engine(config)
    table = engine.open_input()
    if config.retry_errors:
        refuse_without_text(config, table.columns)
    if table.path is not None:
        output.refuse_overlap(table.path)
    elif config.incremental:
        raise ConfigError(
            f"incremental=true with the table {config.input!r}: new rows are told by new files, "
            "and a table has none to compare; give a path, or score it anew with --overwrite"
        )
    workers, source = _find_model(config, engine)
    output.prepare()
    lease = Lease(output.lease_folder)
    try:
        lease.acquire()
        run = _Run(config, engine, make_engine, output, lease, table, workers, source, started)
        return run.run(display)
    finally:
        try:
            output.drop_staging(lease.epoch)
        finally:
            lease.release()
            _tidy(output, lease)


def _tidy(output: Output, lease: Lease) -> None:
    """Removes what is left of a run that did nothing, unless another one holds the output now."""
    holder = read_holder(output.lease_folder)
    if holder is not None and holder.released and holder.epoch == lease.epoch:
        with suppress(OSError):
            output.tidy()


def choose_model_run(config: ScoringConfig, engine: Engine) -> tuple[Workers, ModelSource, Verdict]:
    """Returns on what the model runs, its pinned files, and how it is run; the input is open."""
    workers, source = _find_model(config, engine)
    return workers, source, engine.run_gate(source)


def _find_model(config: ScoringConfig, engine: Engine) -> tuple[Workers, ModelSource]:
    workers = engine.find_workers()
    return workers, resolve(config.model, revision=config.revision, loading=config.loading)


class _Run:
    """One run on an output whose lease it holds."""

    def __init__(
        self,
        config: ScoringConfig,
        engine: Engine,
        make_engine: MakeEngine,
        output: Output,
        lease: Lease,
        table: InputTable,
        workers: Workers,
        source: ModelSource,
        started: float,
    ) -> None:
        self._config = config
        self._engine = engine
        self._make_engine = make_engine
        self._output = output
        self._lease = lease
        self._table = table
        self._workers = workers
        self._source = source
        self._started = started
        self._folder = ManifestFolder(str(config.output))
        self._root = input_root(table.path) if table.path is not None else ""
        self._read_from = InputFolders(
            self._root if table.kind == "parquet" else output.input_folder,
            copies=output.input_folder,
        )

    def run(self, display: Display) -> RunResult:
        """Does what is missing and returns what there is then; see `run_job`."""
        settings = _settings(self._config, self._source, self._table)
        files = list_files(self._table.path) if self._table.path is not None else ()
        manifest = None if self._config.overwrite else self._folder.read()
        retried = Retried() if self._config.retry_errors else None
        if manifest is not None:
            self._refuse_differences(manifest, settings, files)
            self._recover(manifest)
            if retried is not None:
                retried = self._retry(manifest, display)
            records = self._folder.records(self._output.sizes)
            refuse_recorded_errors(self._config, manifest.rows, records.values())
            added = _added(manifest, files)
            if not added and len(records) == len(manifest.chunks):
                return _with_retried(self._nothing_to_do(manifest, records), retried)
        verdict = self._engine.run_gate(self._source)
        settings |= {"acceleration": str(verdict.accepted)}
        if manifest is not None:
            refuse_other_settings(str(self._config.output), manifest.settings, settings)
        with _job_errors():
            self._lease.check()  # the gate may have taken minutes
            self._output.fence(self._lease.epoch)
            if manifest is None:
                manifest = self._begin(settings, files, verdict)
            elif added:
                manifest = self._extend(manifest, files, added)
            return _with_retried(self._score(manifest, verdict, display), retried)

    def _recover(self, manifest: Manifest) -> None:
        """Records what files hold whose replacement by a retry was broken off."""
        replacer = Replacer(self._config, manifest.labels, self._output, self._folder, self._lease)
        if replacer.has_notes():
            with _job_errors():
                self._output.fence(self._lease.epoch)
                replacer.recover()

    def _retry(self, manifest: Manifest, display: Display) -> Retried:
        """Rescores the rows with an error in the chunks that have a record."""
        retry = ErrorRetry(
            self._config,
            self._make_engine,
            self._source,
            manifest,
            self._limits(),
            self._output,
            self._folder,
            self._lease,
        )
        with _job_errors():
            is_there_any = retry.stage()
        if not is_there_any:
            return Retried()
        retry.choose_run()
        with _job_errors():
            return retry.run(display)

    def _refuse_differences(
        self, manifest: Manifest, settings: Mapping[str, Any], files: Sequence[InputFile]
    ) -> None:
        output = str(self._config.output)
        refuse_other_settings(output, manifest.settings, settings)
        refuse_other_input(output, manifest.input_files, files, self._config.incremental)

    def _begin(
        self,
        settings: Mapping[str, Any],
        files: Sequence[InputFile],
        verdict: Verdict,
    ) -> Manifest:
        """Clears the output and writes the manifest of a new run."""
        self._output.clear()
        self._output.forget()
        manifest = Manifest(
            settings=settings,
            verdict=asdict(verdict),
            labels=verdict.labels,
            input_files=(),
            read_files=(),
            chunks=(),
            created=utc_now(),
            written_by=f"sparkinfer {__version__}",
        )
        return self._extend(manifest, files, files)

    def _extend(
        self, manifest: Manifest, files: Sequence[InputFile], added: Sequence[InputFile]
    ) -> Manifest:
        """Writes a manifest that has the chunks of more files."""
        limits = self._limits()
        names = [file.name for file in added]
        if self._table.kind != "parquet":
            names = self._stage(names, limits.rows)
        row_groups = self._row_groups(names)
        if self._table.kind == "parquet":
            row_groups = self._copy_large(row_groups, limits)
        manifest = replace(
            manifest,
            input_files=tuple(files),
            read_files=(*manifest.read_files, *(file.path for file in row_groups)),
            chunks=(*manifest.chunks, *cut_chunks(row_groups, limits, len(manifest.chunks))),
        )
        self._lease.check()  # staging may have taken hours
        self._folder.write(manifest)
        return manifest

    def _stage(self, names: Sequence[str], rows_per_file: int) -> list[str]:
        """Returns the names of the Parquet copies of an input's files, or of a table."""
        attempt = uuid.uuid4().hex
        folder = join(self._output.input_folder, attempt)
        paths = [join(self._root, name) for name in names]
        self._engine.stage_input(folder, rows_per_file, paths)
        return [f"{attempt}/{file.name}" for file in list_files(folder)]

    def _row_groups(self, names: Sequence[str]) -> list[RowGroups]:
        text = self._config.input_col
        return read_row_groups(self._read_from, names, text, self._columns)

    def _copy_large(self, files: Sequence[RowGroups], limits: ChunkLimits) -> list[RowGroups]:
        """Returns the files that are read: copies where a file's row groups are too large.

        Raises:
            RowConservationError: copies have more or fewer rows than their file.
        """
        large = [file.path for file in files if should_copy(file, limits, self._workers.kind)]
        if not large:
            return list(files)
        attempt = uuid.uuid4().hex
        copier = FileCopier(self._root, join(self._output.input_folder, attempt), self._columns)
        copies = {
            name: [f"{COPIES}{attempt}/{copy}" for copy in copies_of_file]
            for name, copies_of_file in self._engine.copy_files(copier, large).items()
        }
        found = iter(self._row_groups([copy for name in large for copy in copies[name]]))
        read: list[RowGroups] = []
        for file in files:
            in_copies = list(islice(found, len(copies.get(file.path, ()))))
            if in_copies and sum(map(_rows, in_copies)) != _rows(file):
                raise RowConservationError(
                    f"input file {join(self._root, file.path)!r} has {_rows(file)} rows and its "
                    f"copy {sum(map(_rows, in_copies))}; run again"
                )
            read += in_copies or [file]
        return read

    @property
    def _columns(self) -> tuple[str, ...]:
        """Names of the columns that are read."""
        return tuple(dict.fromkeys([*self._table.carried, self._config.input_col]))

    def _limits(self) -> ChunkLimits:
        default = DEFAULT_LIMITS[self._workers.kind]
        if self._config.chunks.target_rows is None:
            return default
        return ChunkLimits(self._config.chunks.target_rows, NO_LIMIT)

    def _score(self, manifest: Manifest, verdict: Verdict, display: Display) -> RunResult:
        """Scores the chunks without a record."""
        self._output.unfinish()
        records = self._folder.records(self._output.sizes)
        done = [records[chunk.number] for chunk in manifest.chunks if chunk.number in records]
        self._output.clear(keep={name for record in done for name in record.files})
        missing = [chunk for chunk in manifest.chunks if chunk.number not in records]
        deaths = self._folder.deaths()
        progress = Progress(manifest.rows, len(manifest.chunks))
        progress.skip(sum(record.rows for record in done), len(done))
        committer = Committer(
            self._config,
            verdict.labels,
            self._workers.kind,
            self._output,
            self._folder,
            self._lease,
            progress,
            total_rows=manifest.rows,
            errors=sum(record.errors for record in done),
        )
        with display(progress):
            self._engine.score(
                ScoringRun(
                    source=self._source,
                    verdict=verdict,
                    read_from=self._read_from,
                    tasks=tuple(
                        self._task(chunk, deaths.get(chunk.number, 0)) for chunk in missing
                    ),
                    staging=self._output.staging_folder(self._lease.epoch, "engine"),
                    commit=committer.commit,
                    note_deaths=self._folder.add_deaths,
                ),
                progress,
            )
            progress.end()
        records = self._folder.records(self._output.sizes)
        result = replace(
            self._result(manifest, records),
            rows_before=sum(record.rows for record in done),
            phases=progress.phases,
            workers=self._workers,
            verdict=verdict,
            statistics=progress.statistics(),
            devices=progress.devices,
        )
        self._finish(manifest, records)
        return replace(result, seconds=time.monotonic() - self._started)

    def _task(self, chunk: Chunk, deaths: int) -> ChunkTask:
        attempt = f"{chunk.name}-{uuid.uuid4().hex}"
        return ChunkTask(chunk, self._output.staging_folder(self._lease.epoch, attempt), deaths)

    def _nothing_to_do(self, manifest: Manifest, records: Mapping[int, ChunkRecord]) -> RunResult:
        result = self._result(manifest, records)
        if self._output.is_finished():
            self._clear_strays(records)
        else:
            self._finish(manifest, records)
        return replace(result, rows_before=result.rows, seconds=time.monotonic() - self._started)

    def _finish(self, manifest: Manifest, records: Mapping[int, ChunkRecord]) -> None:
        """Marks the output as complete.

        Raises:
            JobError: the input is not what it was when the run began.
        """
        if self._table.path is not None:
            files = list_files(self._table.path)
            refuse_other_input(str(self._config.output), manifest.input_files, files, may_grow=True)
        self._clear_strays(records)
        self._output.finish()

    def _clear_strays(self, records: Mapping[int, ChunkRecord]) -> None:
        """Removes files that no record names.

        On an object store, a copy that an earlier writer had begun may end late.
        """
        self._lease.check()
        recorded = {name for record in records.values() for name in record.files}
        self._output.clear(keep={SUCCESS_FILE, *recorded})

    def _result(self, manifest: Manifest, records: Mapping[int, ChunkRecord]) -> RunResult:
        """Returns the sum of the records.

        Raises:
            RowConservationError: they are not those of all chunks.
        """
        _refuse_missing(manifest, records)
        states = [record.metrics for record in records.values()]
        return RunResult(
            output=str(self._config.output),
            rows=sum(record.rows for record in records.values()),
            error_rows=sum(record.errors for record in records.values()),
            metrics=combine(manifest.labels, states, self._config.metrics),
            rows_before=0,
            seconds=0.0,
            phases={},
            workers=None,
            verdict=None,
            model_fingerprint=self._source.fingerprint,
            statistics=ScoringStatistics(),
            devices=(),
        )


NO_LIMIT = 1 << 62


def _rows(file: RowGroups) -> int:
    return sum(file.rows)


@contextmanager
def _job_errors() -> Iterator[None]:
    """Turns whatever is raised after the start into a JobError."""
    try:
        yield
    except UsageError as error:  # found while the input was read, after the start
        raise JobError(error.message) from error
    except SparkInferError as error:
        if isinstance(error, JobError):
            raise
        raise JobError(error.message) from error
    except Exception as error:
        raise JobError(f"{type(error).__name__}: {error}") from error


def _with_retried(result: RunResult, retried: Retried | None) -> RunResult:
    """Returns the result of the rest of a run, with what its retry did added."""
    if retried is None:
        return result
    result = replace(result, retried_rows=retried.rows, mended_rows=retried.mended_rows)
    if retried.progress is None:
        return result
    statistics = retried.progress.statistics()
    statistics.add(result.statistics)
    phases = retried.progress.phases
    return replace(
        result,
        phases={
            name: phases.get(name, 0.0) + result.phases.get(name, 0.0)
            for name in {**phases, **result.phases}
        },
        workers=result.workers or retried.workers,
        verdict=result.verdict or retried.verdict,
        statistics=statistics,
        devices=_joined([*retried.progress.devices, *result.devices]),
    )


def _joined(devices: Sequence[DeviceProgress]) -> tuple[DeviceProgress, ...]:
    """Returns each device once, with the sum of what it did; the rate is its last one."""
    joined: dict[str, DeviceProgress] = {}
    for device in devices:
        statistics = replace(device.statistics)
        if device.device in joined:
            statistics.add(joined[device.device].statistics)
        joined[device.device] = replace(device, statistics=statistics)
    return tuple(joined.values())


def _refuse_missing(manifest: Manifest, records: Mapping[int, ChunkRecord]) -> None:
    wrong = [
        chunk.number
        for chunk in manifest.chunks
        if chunk.number not in records or records[chunk.number].rows != chunk.rows
    ]
    if wrong or len(records) != len(manifest.chunks):
        raise RowConservationError(
            f"{len(records)} records for {len(manifest.chunks)} chunks, those of chunks "
            f"{wrong[:10]} absent or of another number of rows; run again to score these"
        )


def _settings(config: ScoringConfig, source: ModelSource, table: InputTable) -> dict[str, Any]:
    """Returns what decides about the output, by name, as JSON has it."""
    carried = config.carry_cols
    return {
        "model_fingerprint": source.fingerprint,
        "input": without_secrets(str(config.input)),
        "task": config.task,
        "input_col": config.input_col,
        "label_col": config.label_col,
        "carry_cols": None if carried is None else list(carried),
        "columns": dict(table.carried),
        "output_prefix": config.output_prefix,
        "metrics": list(config.metrics),
        "max_length": config.max_length,
    }


def _added(manifest: Manifest, files: Sequence[InputFile]) -> list[InputFile]:
    known = {file.name for file in manifest.input_files}
    return [file for file in files if file.name not in known]
