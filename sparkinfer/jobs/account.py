"""What a call does, noted while it does it, and kept at its end as a `Session`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from sparkinfer.exceptions import SparkInferError, UsageError
from sparkinfer.jobs.asked import asked_options
from sparkinfer.jobs.clock import utc_now
from sparkinfer.jobs.done import Done
from sparkinfer.jobs.lease import Lease, LeaseLostError
from sparkinfer.jobs.manifest import Manifest, verdicts_of
from sparkinfer.jobs.result import RunResult
from sparkinfer.jobs.sessions import (
    Outcome,
    Session,
    SessionDevice,
    next_session,
    write_session,
)
from sparkinfer.jobs.versions import versions
from sparkinfer.logs import get_logger
from sparkinfer.messages import shortened
from sparkinfer.plan.prelude import Prelude
from sparkinfer.redaction import without_secrets
from sparkinfer.signals import asked_to_end

logger = get_logger(__name__)


class TracksRun(Protocol):
    """What is told of the run that a call is on.

    Attributes:
        mlflow_run: id of the run of MLflow; empty until it is known.
    """

    mlflow_run: str

    def begin(self, manifest: Manifest) -> None:
        """Takes what there is to do; again where that grows."""


class Account:
    """What one call does; made at its beginning.

    Args:
        prelude: of the run.

    Attributes:
        tracking: the run in MLflow that is told of it; None: there is none.
        outcome: how it ended; None: not yet, or another run has taken over.
        reason: why it failed.
        page: path of the page on the output; None: none was made.
        session: what is kept of it; None: nothing.
        result: what it returns; None: it did not come to that.
    """

    def __init__(self, prelude: Prelude) -> None:
        self.tracking: TracksRun | None = None
        self.outcome: Outcome | None = None
        self.reason = ""
        self.page: str | None = None
        self.session: Session | None = None
        self.result: RunResult | None = None
        self._prelude = prelude
        self._progress = prelude.progress
        self._started_at = utc_now()
        self._run: str | None = None
        self._rows_before = 0
        self._is_retrying = self._is_scoring = False
        self._retried = (0, 0)

    def goes_on(self, manifest: Manifest, done: Done) -> None:
        """Takes the run that the call is on, and what of it was done before."""
        self._run, self._rows_before = manifest.run, done.read
        if self.tracking is not None:
            self.tracking.begin(manifest)

    def retries(self) -> None:
        """Notes that rows are scored again, which the progress counts from now on."""
        self._is_retrying = True

    def scores(self) -> None:
        """Notes that rows are scored for the first time, which the progress counts next."""
        if self._is_retrying:
            self._retried = self._progress.committed
        self._is_scoring = True

    @contextmanager
    def kept(self, output: str, lease: Lease) -> Iterator[None]:
        """Keeps what is done while the context is open, however it ends.

        Nothing is kept of a call that was refused, of one that found nothing to do, and of one that
        no longer holds the output.
        """
        try:
            yield
        except KeyboardInterrupt:
            self.outcome = "stopped"
            self._keep(output, lease, self.outcome)
            raise
        except Exception as error:
            self.outcome = "failed" if asked_to_end() is None else "stopped"
            self.reason = _reason(error) if self.outcome == "failed" else ""
            if not isinstance(error, UsageError):
                self._keep(output, lease, self.outcome, self.reason)
            raise
        self.outcome = "finished"
        if self._has_begun:
            self._keep(output, lease, self.outcome)

    def _keep(self, output: str, lease: Lease, outcome: Outcome, reason: str = "") -> None:
        if self._run is None:
            return
        try:
            lease.check()
            self.session = self._session(next_session(output), outcome, reason)
            write_session(output, self._run, self.session)
        except LeaseLostError:
            pass  # the output is another run's now
        except Exception as error:  # each store has its own
            logger.warning("what this run did is not kept in %s: %s", output, error)

    def _session(self, number: int, outcome: Outcome, reason: str) -> Session:
        config, workers = self._prelude.config, self._prelude.workers
        progress, verdict = self._progress, self._verdict()
        scored, errors = progress.committed if self._is_scoring else (0, 0)
        retried, still = self._retried
        if self._is_retrying and not self._is_scoring:
            retried, still = progress.committed
        return Session(
            number=number,
            started=self._started_at,
            outcome=outcome,
            reason=reason,
            seconds=round(progress.elapsed_s, 3),
            phases={name: round(took_s, 3) for name, took_s in progress.phases.items()},
            engine=config.engine,
            workers=workers.count if self._has_begun else 0,
            device_type=workers.device_type,
            rows=scored,
            rows_before=self._rows_before,
            retried_rows=retried,
            errors=errors + still,
            devices=tuple(SessionDevice(one.device, one.statistics) for one in progress.devices),
            timeline=self._timeline(),
            verdict=verdict.get("", verdict),
            options=asked_options(config),
            versions=self._versions(verdict),
            hosts=progress.hosts,
            price_per_hour=config.price_per_hour,
            mlflow_run="" if self.tracking is None else self.tracking.mlflow_run,
            lost_workers=progress.lost_workers,
            notes=() if self.result is None else self.result.notes,
        )

    @property
    def _has_begun(self) -> bool:
        return self._is_retrying or self._is_scoring

    def _verdict(self) -> dict[str, Mapping[str, Any]]:
        tried = self._prelude.tried
        return {} if tried is None or tried.verdict is None else verdicts_of(asdict(tried.verdict))

    def _timeline(self) -> tuple[tuple[float, int], ...]:
        points = self._progress.timeline if self._has_begun else ()
        return tuple((round(at_s, 3), rows) for at_s, rows in points)

    def _versions(self, verdict: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        ways = [one["accepted"] for one in verdict.values()]  # words where there is only one way
        backends = [way["backend"] for way in ways if isinstance(way, Mapping)]
        has_models = not self._prelude.asked.replaces_rows
        return versions(self._prelude.config.engine, backends, has_models=has_models)


def _reason(error: Exception) -> str:
    if isinstance(error, SparkInferError):
        return error.message
    return shortened(without_secrets(f"{type(error).__name__}: {error}"))
