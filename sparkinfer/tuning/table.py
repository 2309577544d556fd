"""What was found, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from sparkinfer.terminal import printable
from sparkinfer.tuning.found import Findings, Tried

COLUMNS = (
    *("", "way", "batch", "processes", "rows/s", "tokens/s", "of peak", "difference", "changed"),
    "memory",
)


def describe(findings: Findings) -> str:
    """Returns a line for each setting, then what they mean."""
    rows = [_row(findings, one) for one in findings.tried]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    lines = [_line(COLUMNS, widths)]
    for row, one in zip(rows, findings.tried, strict=True):
        lines.append(_line(row, widths))
        if one.rejected:
            lines.append(f"    not used: {one.rejected}")
    return "\n".join(printable(line) for line in [*lines, "", *_notes(findings)])


def _row(findings: Findings, one: Tried) -> tuple[str, ...]:
    setting = one.setting
    is_timed = one.rows_per_s > 0
    return (
        "*" if one == findings.chosen else "x" if one.rejected else "",
        str(setting.way),
        str(setting.batch_tokens),
        setting.split,
        f"{one.rows_per_s:,.1f}" if is_timed else "-",
        f"{one.tokens_per_s:,.0f}" if is_timed else "-",
        "-" if one.of_ceiling is None else f"{one.of_ceiling:.0%}",
        "-" if one.difference is None else f"{one.difference:.1g}",
        "-" if one.changed is None else f"{one.changed:.1%}",
        "-" if one.memory_bytes is None else f"{one.memory_bytes / 2**20:,.0f} MiB",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*texts, *numbers]).rstrip()


def _notes(findings: Findings) -> list[str]:
    chosen = findings.chosen.setting
    return [
        f"* chosen: {chosen}",
        f"measured on {findings.device_model}, with the input's first {findings.rows} rows of "
        f"{findings.row_tokens:.0f} tokens in the mean, tokenising excluded",
        "of peak: share of the measured rate of matrix products, for the model's weights alone",
        f"difference, changed: from {findings.reference}, the largest one and the share of rows "
        "with another label or error",
        *(f"not measured: {what}" for what in findings.unmeasured),
    ]
