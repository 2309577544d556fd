"""A finished run in a few lines, and a look at its rows."""

from __future__ import annotations

import pyarrow.dataset as pads

from sparkinfer.jobs.runner import RunResult
from sparkinfer.report.live import format_seconds
from sparkinfer.storage import file_system

CELL_WIDTH = 48
"""Longest text shown of one cell."""


def summarize(result: RunResult) -> str:
    """Returns what a run did, one fact a line."""
    total = result.statistics
    verdict = result.verdict
    lines = [
        f"scored     {result.rows:,} rows, {result.error_rows:,} of them with an error",
        f"rate       {result.rows_per_s:,.0f} rows/s of scoring; {_seconds_by_phase(result)}",
        f"model      {verdict.accepted} on {result.workers.count} x {result.workers.kind}; "
        f"largest difference from float32 {verdict.max_difference:.1g}",
    ]
    lines += [f"           not used: {name}: {reason}" for name, reason in verdict.rejected]
    if total.rows:
        lines.append(
            f"batches    {total.batches:,} of {total.padded_tokens:,} tokens, "
            f"{total.padding_share:.1%} of them padding; {total.truncated:,} rows truncated"
        )
    lines += [
        f"worker     {report.worker} on {report.device}: {report.statistics.rows:,} rows, "
        f"{report.statistics.forward_s:.1f} s in the model, "
        f"{report.statistics.wait_s:.1f} s waiting"
        for report in result.reports
    ]
    if result.accuracy is not None:
        lines.append(f"accuracy   {result.accuracy:.4f}")
    lines.append(f"output     {result.output}")
    return "\n".join(lines)


def _seconds_by_phase(result: RunResult) -> str:
    """Returns what each phase took, the rest of the job first: check, publish."""
    known = sum(result.phases.values())
    parts = {"check and publish": result.seconds - known, **result.phases}
    listed = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in parts.items())
    return f"{listed}; {format_seconds(result.seconds)} in all"


def first_rows(output: str, rows: int = 5) -> str:
    """Returns the first rows of an output as a table, long texts shortened."""
    fs, name = file_system(output)
    frame = pads.dataset(name, filesystem=fs, format="parquet").head(rows).to_pandas()
    return str(frame.to_string(index=False, max_colwidth=CELL_WIDTH))
