"""Durations, rates and where time goes, in words."""

from __future__ import annotations

BOTTLENECKS = {
    "reading": "reading the input",
    "tokenising": "tokenising",
    "forward": "the model",
    "decoding": "decoding the model's output",
    "writing": "writing the output",
}
"""Steps of a worker; see `ScoringStatistics.bottleneck`."""


def format_seconds(seconds: float) -> str:
    """Returns a duration for people: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_rate(rows_per_s: float) -> str:
    """Returns a rate for people: `1,020 rows/s`, `0.25 rows/s`."""
    digits = 0 if rows_per_s >= 10 or not rows_per_s else 2
    return f"{rows_per_s:,.{digits}f} rows/s"


def describe_bottleneck(bottleneck: tuple[str, float]) -> str:
    """Returns the slowest step and its share of the time, as a phrase."""
    step, share = bottleneck
    return f"{BOTTLENECKS[step]}, {share:.0%} of the time"


def counted(number: int, singular: str) -> str:
    """Returns a number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {singular}{'' if number == 1 else 's'}"
