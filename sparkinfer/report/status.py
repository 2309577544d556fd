"""What part of a run is done and what is left, read from its output alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sparkinfer.jobs.claims import Holder
from sparkinfer.jobs.summary import describe_metrics
from sparkinfer.plan.wording import counted, describe_bottleneck, format_seconds
from sparkinfer.redaction import without_secrets
from sparkinfer.report.own_metrics import metrics_of_run
from sparkinfer.report.survey import Survey
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
        bottleneck: the step for which the others of a worker waited, and its share of the time, 0
            to 1, over the records that tell; None: none does.
        padding_share: share of the model's tokens that were padding, 0 to 1; None likewise.
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
    bottleneck: tuple[str, float] | None = None
    padding_share: float | None = None

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
    return status_of(Survey(path))


def status_of(survey: Survey) -> RunStatus:
    """Returns the status of a run whose output was looked at."""
    manifest, done, missing = survey.manifest, survey.done, survey.missing
    measured, statistics = survey.metrics.measured(), survey.statistics
    return RunStatus(
        output=without_secrets(survey.path),
        state=_state(survey.is_finished, bool(missing), survey.writer),
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
        rows_per_s=survey.rate.rows_per_s,
        metrics=measured.metrics,
        metrics_problem=measured.problem,
        metrics_of_run=metrics_of_run(manifest),
        writer=survey.writer,
        vector_store=manifest.settings.get("vectors.store"),
        vector_chunks=survey.vector_chunks,
        bottleneck=statistics.bottleneck,
        padding_share=statistics.padding_share if statistics.padded_tokens else None,
    )


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
    if status.bottleneck is not None:
        lines.append(f"bottleneck {describe_bottleneck(status.bottleneck)}")
    if status.padding_share is not None:
        lines.append(f"padding    {status.padding_share:.1%} of the model's tokens")
    lines.append(f"errors     {counted(status.errors, 'row')}")
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
