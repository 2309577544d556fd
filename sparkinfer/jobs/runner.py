"""A whole run: check everything, cut the input, score and commit the chunks, return the result.

The same call resumes an interrupted run: chunks with a record are done.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparkinfer import __version__
from sparkinfer.exceptions import (
    ConfigError,
    InputError,
    JobError,
    ResumeError,
    TooManyErrorsError,
)
from sparkinfer.jobs.account import Account
from sparkinfer.jobs.clock import utc_now
from sparkinfer.jobs.committer import Committer, Recorder
from sparkinfer.jobs.delta import check_delta, delta_appends
from sparkinfer.jobs.differences import refuse_other_settings, refuse_other_way
from sparkinfer.jobs.done import Done, done_in
from sparkinfer.jobs.error_limit import ErrorLimit
from sparkinfer.jobs.finish import finish
from sparkinfer.jobs.first_labels import warn_of_strange_labels
from sparkinfer.jobs.hold import Hold
from sparkinfer.jobs.input_state import JobInput, job_input
from sparkinfer.jobs.insistence import Insistence
from sparkinfer.jobs.job_errors import job_errors
from sparkinfer.jobs.lease import Lease, LeaseLostError
from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.manifest import (
    MOST_REPLACED,
    Manifest,
    create_manifest,
    manifest_numbers,
    new_run,
    read_manifest,
)
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.records import Records
from sparkinfer.jobs.result import Retried, RunResult, with_retried
from sparkinfer.jobs.retry import ErrorRetry, refuse_without_text
from sparkinfer.jobs.settings import settings_of
from sparkinfer.jobs.table import check_table, publish_table
from sparkinfer.jobs.tracking import tracked
from sparkinfer.jobs.vectors import RunVectors, run_vectors
from sparkinfer.logs import get_logger
from sparkinfer.plan.input_chunks import InputChunks
from sparkinfer.plan.phases import CHECKS, INPUT, PUBLISH
from sparkinfer.plan.ports import ChunkTask, Sink
from sparkinfer.plan.prelude import Prelude
from sparkinfer.sinks.arrivals import Arrivals, FilesAndMore, NoFiles
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.sinks.vectors.delivery import Delivery

logger = get_logger(__name__)


Page = Callable[[], str | None]
"""Makes the page on the output and returns its path, None if there is none."""


def run_job(prelude: Prelude, page: Page = lambda: None) -> RunResult:
    """Scores the part of the input that is not done and commits it to the output.

    Everything that can be wrong with the call is checked before the first row is scored.

    Args:
        prelude: what to do; the configuration's `output` is required. Its progress receives the
            phases and the rows.
        page: called at the end, also of a job that failed.

    Raises:
        UsageError: the call cannot work; nothing was written.
        JobError: the job had started and failed; the same call resumes it.
    """
    account, config, progress = Account(prelude), prelude.config, prelude.progress
    progress.enter(CHECKS)
    if config.output is None:
        raise ConfigError("option 'output' is required; give --output FOLDER or output=...")
    prelude.check()
    output = Output(config.output)
    output.check(config.overwrite)
    columns, files = prelude.asked_columns, prelude.table.files
    if config.retry_errors and not prelude.asked.replaces_rows:
        refuse_without_text(columns)
    if files is not None:
        output.refuse_overlap(files.found.paths)
    chunks = InputChunks(prelude, output.input_folder)
    read = job_input(prelude, chunks)
    check_delta(prelude, output)
    check_table(prelude)
    with (
        tracked(prelude, account),
        _ending_with(page, account),
        run_vectors(prelude, output) as vectors,
    ):
        _ = (
            prelude.workers,
            prelude.resolved,
        )  # so that errors in them are found before anything is written
        output.prepare()
        lease = Lease(output.lease_folder)
        try:
            with lease:
                prelude.output = output.lease_folder
                run = _Run(prelude, output, lease, chunks, read, vectors, account)
                try:
                    with account.kept(output.path, lease):
                        result = run.run()
                        account.result = result
                finally:
                    run.clean_up()
        finally:
            output.remove_if_empty()
    progress.end()
    return replace(
        result,
        phases=progress.phases,
        seconds=progress.elapsed_s,
        statistics=progress.statistics(),
        devices=progress.devices,
        report=account.page,
    )


@contextmanager
def _ending_with(page: Page, account: Account) -> Iterator[None]:
    """Has the page made when the context ends."""
    try:
        yield
    except (JobError, KeyboardInterrupt):
        account.page = page()
        if account.page is not None:  # no warning: what went wrong is said in one line
            logger.info("what was done until then: %s", account.page)
        raise
    account.page = page()


@dataclass(frozen=True)
class _Begun:
    """A run of the output: a resumed one, or a new one.

    Attributes:
        manifest: what it has to do.
        hold: the output, for this run.
        done: what of it is done.
        is_larger: whether the input has more than the manifest.
    """

    manifest: Manifest
    hold: Hold
    done: Done
    is_larger: bool


class _Run:
    """One run on an output whose lease it holds."""

    def __init__(
        self,
        prelude: Prelude,
        output: Output,
        lease: Lease,
        chunks: InputChunks,
        read: JobInput,
        vectors: RunVectors | None,
        account: Account,
    ) -> None:
        self._config = prelude.config
        self._prelude = prelude
        self._output = output
        self._lease = lease
        self._insist = Insistence(lease)
        self._progress = prelude.progress
        self._chunks = chunks
        self._input = read
        self._vectors = vectors
        self._account = account
        self._ledgers: list[Ledger] = []
        self._next_number = 1 + max(manifest_numbers(output.path), default=0)

    def run(self) -> RunResult:
        """Does what is not done yet and returns the result; see `run_job`."""
        settings = settings_of(self._prelude)
        earlier = self._earlier(settings)
        retried = Retried() if self._config.retry_errors else None
        if earlier is not None:
            self._account.goes_on(earlier.manifest, earlier.done)
            self._prelude.follow(earlier.manifest.verdict)
            if retried is not None:
                retried = self._retry(earlier)
                ledger = earlier.hold.ledger
                earlier = replace(earlier, done=self._insist(lambda: done_in(ledger.standing())))
            self._limit(earlier.manifest, earlier.done)
            is_done = len(earlier.done.numbers) == len(earlier.manifest.chunks)
            if is_done and not earlier.is_larger:
                refuse_other_way(
                    self._output.path, earlier.manifest.verdict, self._prelude.resolved
                )
                return with_retried(self._nothing_to_do(earlier), retried)
        earlier = self._tried(earlier)
        settings |= self._prelude.processor.settings()
        with job_errors():
            self._lease.check()  # the gate may have taken minutes
            self._output.fence(self._lease.epoch)
            if earlier is None:
                earlier = self._begun(self._begin(settings))
            elif earlier.is_larger:
                earlier = replace(earlier, manifest=self._extended(earlier.manifest))
                earlier.hold.ledger.extend(earlier.manifest.chunks)
            return with_retried(self._score(earlier), retried)

    def clean_up(self) -> None:
        """Removes what the run has staged, while it still holds the output.

        What is recorded and not yet where readers look stays: the next run finishes that. What
        cannot be removed is only logged, as there may be an error that says more.
        """
        try:
            self._lease.check()
            if all(ledger.is_settled for ledger in self._ledgers):
                self._output.remove_staging(self._lease.epoch)
            if self._output.is_unused():
                self._lease.forget()
        except LeaseLostError:
            pass  # all of it is the other run's now
        except Exception as error:  # each store has its own errors
            logger.warning("what this run staged cannot be removed yet: %s", error)

    def _begun(self, manifest: Manifest) -> _Begun:
        """Returns the run of a manifest, with all that is recorded done."""
        path = self._output.path
        sink, delivery = self._sink(manifest)
        ledger = Ledger(Records(path, manifest.run), sink, manifest.chunks)
        self._ledgers.append(ledger)
        with job_errors():
            done = done_in(ledger.recover(self._insist))
        hold = Hold(self._output, sink, ledger, self._insist, self._lease.epoch, delivery)
        return _Begun(manifest, hold, done, is_larger=False)

    def _sink(self, manifest: Manifest) -> tuple[Sink, Delivery | None]:
        """Returns where readers look for what a run makes, and the way to its vector store."""
        path, vectors = self._output.path, self._vectors
        files = ParquetFolder(path, manifest.run)
        arrivals: list[Arrivals] = []
        if self._config.delta.table is not None:
            columns = self._prelude.asked_columns
            arrivals.append(delta_appends(self._config.delta.table, manifest, columns))
        if vectors is None:
            return (FilesAndMore(files, arrivals) if arrivals else files), None
        delivery = vectors.delivery(manifest, lambda: self._insist(lambda: None))
        arrivals.append(delivery)
        if vectors.keeps_files:
            return FilesAndMore(files, arrivals), delivery
        return NoFiles(files, path, arrivals), delivery

    def _earlier(self, settings: Mapping[str, Any]) -> _Begun | None:
        """Returns the run to resume, None to start a new one.

        A run that overwrites resumes one that did and was interrupted, if it fits.
        """
        if not self._config.overwrite:
            manifest = read_manifest(self._output.path)
            return None if manifest is None else self._opened(manifest, settings)
        with suppress(ResumeError, InputError):  # the latter: a copy of the input is damaged
            manifest = read_manifest(self._output.path)
            is_finished = ParquetFolder(self._output.path).is_finished()
            if manifest is not None and manifest.overwrites and not is_finished:
                return self._within_limit(self._opened(manifest, settings))
        return None

    def _opened(self, manifest: Manifest, settings: Mapping[str, Any]) -> _Begun:
        """Returns a run to resume.

        Raises:
            ResumeError: settings, input or chunks are not those that it began with.
        """
        refuse_other_settings(self._output.path, manifest.settings, settings)
        begun = self._begun(manifest)
        is_larger = self._input.is_larger(manifest, begun.done.numbers)
        self._input.refuse_uncovered(manifest, begun.done.numbers)
        return replace(begun, is_larger=is_larger)

    def _within_limit(self, earlier: _Begun) -> _Begun | None:
        try:
            self._limit(earlier.manifest, earlier.done)
        except TooManyErrorsError:
            return None
        return earlier

    def _limit(self, manifest: Manifest, done: Done) -> ErrorLimit:
        """Returns the limit of rows with an error, of which those that are done are added.

        Raises:
            TooManyErrorsError: there are more already.
        """
        limit = ErrorLimit(self._config, manifest.rows)
        limit.add(done.errors, done.reasons)
        return limit

    def _tried(self, earlier: _Begun | None) -> _Begun | None:
        """Returns the run to resume once the processor is tried out as it was then.

        Raises:
            ResumeError: it would be run in another way.
        """
        if earlier is None:
            _ = self._prelude.processor
            return None
        try:
            settings = self._prelude.processor.settings()
            refuse_other_settings(self._output.path, earlier.manifest.settings, settings)
        except (JobError, ResumeError) as error:
            if not self._config.overwrite:
                raise
            logger.warning("the interrupted run is not resumed: %s", error)
            self._prelude.follow(None)
            return None
        return earlier

    def _retry(self, earlier: _Begun) -> Retried:
        """Has the rows with an error scored again in the chunks that are done."""
        with job_errors():
            retry = ErrorRetry(self._prelude, earlier.hold, earlier.manifest, self._chunks.folders)
        if not retry.rows:
            return Retried()
        self._tried(earlier)
        with job_errors():
            self._lease.check()
            self._output.fence(self._lease.epoch)
            self._account.retries()
            retried = retry.run()
        self._progress.enter(CHECKS)
        return retried

    def _begin(self, settings: Mapping[str, Any]) -> Manifest:
        """Creates the manifest of a new run, which replaces all earlier ones."""
        processor = self._prelude.processor
        return self._extended(
            Manifest(
                settings=settings,
                verdict=asdict(processor.verdict) if processor.verdict is not None else {},
                labels=processor.labels,
                input_files=(),
                read_files=(),
                chunks=(),
                created=utc_now(),
                written_by=f"sparkinfer {__version__}",
                run=new_run(),
                replaced=tuple(self._output.runs()[-MOST_REPLACED:]),
            )
        )

    def _extended(self, manifest: Manifest) -> Manifest:
        """Creates the next manifest, with the chunks of what is new in the input added."""
        with self._progress.during(INPUT):
            manifest = self._input.extend(manifest)
        manifest = replace(manifest, number=self._next_number, overwrites=self._config.overwrite)
        self._lease.check()  # copying may have taken hours
        if not create_manifest(self._output.path, manifest):
            raise LeaseLostError(
                f"output {self._output.path!r}: another run has started there meanwhile; this one "
                "writes nothing more. Run again once no other run writes there"
            )
        return manifest

    def _score(self, begun: _Begun) -> RunResult:
        """Scores the chunks that are not done."""
        manifest, hold, done = begun.manifest, begun.hold, begun.done
        self._account.goes_on(manifest, done)
        Records(self._output.path, manifest.run).make_folder()
        self._insist(hold.sink.unfinish)
        sink = ParquetFolder(self._output.path)
        self._insist(lambda: sink.remove(sink.of_runs(manifest.replaced)))
        progress = self._progress
        self._account.scores()
        progress.expect(manifest.rows, len(manifest.chunks))
        progress.skip(done.read, len(done.numbers))
        notes, staging = self._output.notes_folder, hold.staging_folder("engine")
        plan = self._prelude.plan(self._chunks.folders, staging, notes)
        recorder = Recorder(hold, plan.measure, plan.workers.device_type)
        committer = Committer(recorder, progress, self._limit(manifest, done))
        warn_of_strange_labels(plan, manifest.chunks)
        self._prelude.engine.score(plan, self._tasks(manifest, hold, done), committer, progress)
        progress.enter(PUBLISH)
        result = replace(
            finish(self._prelude, manifest, hold, self._input, self._chunks.notes),
            rows_before=done.read,
            workers=plan.workers,
            verdict=self._prelude.processor.verdict,
        )
        publish_table(self._prelude, manifest, hold)
        return result

    def _tasks(self, manifest: Manifest, hold: Hold, done: Done) -> Iterator[ChunkTask]:
        """Yields the chunks that are not done, lazily."""
        for chunk in manifest.chunks:
            if chunk.number not in done.numbers:
                attempt = f"{chunk.name}-{uuid.uuid4().hex}"
                yield ChunkTask(chunk, hold.staging_folder(attempt))

    def _nothing_to_do(self, earlier: _Begun) -> RunResult:
        self._progress.enter(PUBLISH)
        with job_errors():
            result = finish(
                self._prelude, earlier.manifest, earlier.hold, self._input, self._chunks.notes
            )
            publish_table(self._prelude, earlier.manifest, earlier.hold)
        return replace(result, rows_before=result.rows_read)
