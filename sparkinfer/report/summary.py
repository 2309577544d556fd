"""A finished run in a few lines, and a look at its rows."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.dataset as pads

from sparkinfer.display import describe_bottleneck, format_seconds
from sparkinfer.jobs.result import RunResult
from sparkinfer.models.gate import Verdict
from sparkinfer.redaction import without_secrets
from sparkinfer.rows.several import SeveralVerdict
from sparkinfer.storage import file_system
from sparkinfer.terminal import printable, printable_lines

CELL_WIDTH = 48
"""Maximum width of a cell, in characters."""

REASONS_SHOWN = 3
"""Reasons of errors that a summary shows, the most frequent ones."""


def summarize(result: RunResult) -> str:
    """Returns what a run did, one fact per line."""
    made = f"{result.rows:,} rows, {result.error_rows:,} of them with an error"
    if result.rows != result.rows_read:
        made = f"{result.rows_read:,} rows, which gave {made}"
    lines = [f"scored     {made}"]
    reasons = list(result.error_reasons.items())[:REASONS_SHOWN]
    lines += [f"           {count:,} x {reason}" for reason, count in reasons]
    if result.workers is None:
        lines.append("           nothing to do: every chunk was already done")
    elif result.rows_before:
        lines.append(f"           {result.rows_before:,} of them done before this run")
    if result.retried_rows is not None:
        lines.append(_retried_line(result.retried_rows, result.mended_rows))
    if result.workers is not None:
        lines.append(
            f"rate       {result.rows_per_s:,.0f} rows/s of scoring; {_seconds_by_phase(result)}"
        )
    lines += [*_model_lines(result), *_worker_lines(result)]
    lines += describe_metrics(result.metrics, result.metrics_problem)
    lines += [f"note       {note}" for note in result.notes]
    if result.vector_store is not None:
        lines.append(f"vectors    {result.vectors:,} in {result.vector_store}")
    lines.append(f"output     {result.output}")
    if result.report is not None:
        lines.append(f"report     {result.report}")
    return "\n".join(printable(without_secrets(line)) for line in lines)


def _retried_line(retried: int, mended: int) -> str:
    if not retried:
        return "retried    nothing: no row that an earlier run scored has a text and an error"
    return f"retried    {retried:,} rows that had an error; {mended:,} of them no longer do"


def _model_lines(result: RunResult) -> list[str]:
    verdict, workers = result.verdict, result.workers
    if verdict is None or workers is None:
        return []
    on = f"on {workers.count} x {workers.device_type}"
    if not isinstance(verdict, SeveralVerdict):
        return _verdict_lines("", verdict, on)
    lines = [
        line
        for name, one in verdict.models.items()
        if one is not None
        for line in _verdict_lines(f"{name}: ", one, on)
    ]
    shared = [names for names in verdict.encoded_alike if len(names) > 1]
    lines += [f"           tokenised once for {', '.join(names)}" for names in shared]
    if verdict.takes_turns:
        size = f"{verdict.weights_bytes / 2**30:.1f} GiB of weights"
        lines.append(f"           {size} do not fit on the device: the models take turns")
    return lines


def _verdict_lines(label: str, verdict: Verdict, on: str) -> list[str]:
    unpadded = verdict.unpadded
    return [
        f"model      {label}{verdict.accepted} {on}; {verdict.details}",
        *(f"           not used: {name}: {reason}" for name, reason in verdict.rejected),
        *([f"           texts of unlike length share no batch: {unpadded}"] if unpadded else []),
    ]


def _worker_lines(result: RunResult) -> list[str]:
    total = result.statistics
    lines = []
    if total.padded_tokens:
        lines.append(
            f"batches    {total.batches:,} of {total.padded_tokens:,} tokens, "
            f"{total.padding_share:.1%} of them padding; {total.truncated:,} rows truncated"
        )
    elif total.batches:
        failed = f"; {total.errored_batches:,} failed over a row" if total.errored_batches else ""
        lines.append(f"batches    {total.batches:,}{failed}")
    if total.bottleneck:
        lines.append(f"bottleneck {describe_bottleneck(total.bottleneck)}")
    lines += [
        f"device     {device.device}: {device.rows:,} rows, "
        f"{device.statistics.forward_s:.1f} s in the model, "
        f"{device.statistics.wait_s:.1f} s waiting"
        for device in result.devices
    ]
    return lines


def describe_metrics(metrics: Mapping[str, float], problem: str | None) -> list[str]:
    """Returns one line per metric, or one that says why there are none."""
    if problem is not None:
        return [f"metrics    none: {problem}"]
    return [f"{name:<17} {_figure(name, value)}" for name, value in metrics.items()]


def _figure(name: str, value: float) -> str:
    is_count = name.rpartition(".")[2] in ("labelled_rows", "unknown_labels")
    return f"{value:,.0f}" if is_count else f"{value:.4f}"


def _seconds_by_phase(result: RunResult) -> str:
    """Returns the time that each phase took, the rest of the job first: check, publish."""
    known = sum(result.phases.values())
    parts = {"check and publish": result.seconds - known, **result.phases}
    listed = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in parts.items())
    return f"{listed}; {format_seconds(result.seconds)} in total"


def first_rows(output: str, rows: int = 5) -> str:
    """Returns the first rows of an output as a table, long texts shortened."""
    fs, name = file_system(output)
    frame = pads.dataset(name, filesystem=fs, format="parquet").head(rows).to_pandas()
    return printable_lines(frame.to_string(index=False, max_colwidth=CELL_WIDTH))
