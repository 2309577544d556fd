"""A finished run in a sentence and a few lines."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparkinfer.models.backends.base import Acceleration, shown_way
from sparkinfer.models.gate import Verdict
from sparkinfer.plan.plan import Workers
from sparkinfer.plan.wording import counted, describe_bottleneck, format_rate, format_seconds
from sparkinfer.redaction import without_secrets
from sparkinfer.rows.several import SeveralVerdict
from sparkinfer.terminal import printable

if TYPE_CHECKING:
    from sparkinfer.jobs.result import RunResult

REASONS_SHOWN = 3
"""Reasons of errors that a summary shows, the most frequent ones."""

DEVICES_SHOWN = 16

LABELS_SHOWN = 8

SHORT_PHASE_S = 0.5
"""Phases that took less are not listed."""

_Fact = tuple[str, str]
"""A name, empty where it is that of the fact before, and what there is to say."""


def summarize(result: RunResult) -> str:
    """Returns what a run did: a sentence, then one fact per line."""
    lines = [headline(result)]
    lines += [f"{name:<10} {text}" for name, text in _facts(result)]
    lines += describe_metrics(result.metrics, result.metrics_problem)
    lines += [f"{name:<10} {text}" for name, text in _places(result)]
    return "\n".join(map(_safe, lines))


def summary_html(result: RunResult) -> str:
    """Returns the same as an HTML fragment with escaped texts."""
    metrics = [(name, _figure(name, value)) for name, value in result.metrics.items()]
    if result.metrics_problem is not None:
        metrics = [("metrics", f"none: {result.metrics_problem}")]
    facts = [*_facts(result), *metrics, *_places(result)]
    rows = "".join(
        f'<tr><th style="text-align: left">{_escaped(name)}</th>'
        f'<td style="text-align: left">{_escaped(text)}</td></tr>'
        for name, text in facts
    )
    return f"<div>{_escaped(headline(result))}<table>{rows}</table></div>"


def _safe(text: str) -> str:
    return printable(without_secrets(text))


def _escaped(text: str) -> str:
    return html.escape(_safe(text))


def headline(result: RunResult) -> str:
    """Returns what a run did, as a sentence."""
    if result.workers is None:
        return f"Nothing to do: all {counted(result.rows_read, 'row')} had been scored before."
    made = ""
    if result.rows != result.rows_read:
        made = f", of which the output has {counted(result.rows, 'row')},"
    return (
        f"Scored {counted(result.rows_scored, 'row')}{made} in {format_seconds(result.seconds)} "
        f"({format_rate(result.rows_per_s)}, loading the model included) "
        f"on {_slots(result.workers)}{_with_what(result.verdict)}."
    )


def _slots(workers: Workers) -> str:
    if workers.device_type == "cpu":
        return counted(workers.count, "CPU slot")
    return counted(workers.count * workers.gpus_each, "GPU")


def _with_what(verdict: Any) -> str:
    if verdict is None:
        return ""
    if isinstance(verdict, SeveralVerdict):
        return f" with {counted(len(verdict.models), 'model')}"
    return f" with {_way(verdict)}"


def _way(verdict: Any) -> str:
    """Returns how a model is run; what is no model says it itself."""
    way = verdict.accepted
    return way.shown if isinstance(way, Acceleration) else str(way)


def _facts(result: RunResult) -> Iterator[_Fact]:
    if result.rows_before and result.workers is not None:
        yield "before", f"{counted(result.rows_before, 'row')} were done by an earlier run"
    if result.retried_rows is not None:
        yield "retried", _retried(result.retried_rows, result.recovered_rows)
    yield "errors", counted(result.error_rows, "row") if result.error_rows else "none"
    for reason, count in list(result.error_reasons.items())[:REASONS_SHOWN]:
        yield "", f"{count:,} x {reason}"
    for name, counts in result.labels.items():
        yield "labels", f"{name}: {_labels(counts)}" if name else _labels(counts)
    yield from _about_models(result.verdict)
    yield from _about_work(result)
    yield "time", _times(result.phases)


def _labels(counts: Mapping[str, int]) -> str:
    """Returns the most frequent labels, and how many rows have each."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{label} {rows:,}" for label, rows in ordered[:LABELS_SHOWN]]
    rest = len(ordered) - LABELS_SHOWN
    return ", ".join([*shown, *([f"and {rest:,} more labels"] if rest > 0 else [])])


def _retried(retried: int, recovered: int) -> str:
    if not retried:
        return "nothing: no row that an earlier run scored has a text and an error"
    return f"{counted(retried, 'row')} that had an error; {recovered:,} recovered"


def _about_models(verdict: Any) -> Iterator[_Fact]:
    if verdict is None:
        return
    if not isinstance(verdict, SeveralVerdict):
        yield from _about_model(verdict)
        return
    for name, one in verdict.models.items():
        if one is not None:
            yield "model", f"{name}: {_way(one)}"
            yield from _about_model(one)
    for names in verdict.encoded_alike:
        if len(names) > 1:
            yield "", f"tokenised once for {', '.join(names)}"
    if verdict.takes_turns:
        size = f"{verdict.weights_bytes / 2**30:.1f} GiB of weights"
        yield "", f"{size} do not fit on the device: the models take turns"


def _about_model(verdict: Any) -> Iterator[_Fact]:
    if not isinstance(verdict, Verdict) or not verdict.is_reference:
        yield "numbers", verdict.details
    for name, reason in verdict.rejected:
        yield "not used", f"{shown_way(name)}: {reason}"
    if verdict.unpadded:
        yield "batching", f"texts of unlike length share no batch: {verdict.unpadded}"


def _about_work(result: RunResult) -> Iterator[_Fact]:
    total = result.statistics
    if total.padded_tokens:
        yield (
            "batches",
            f"{total.batches:,} with {total.padded_tokens:,} tokens, {total.padding_share:.1%} of "
            f"them padding; {counted(total.truncated, 'text')} truncated",
        )
    elif total.batches:
        failed = f"; {total.errored_batches:,} failed over a row" if total.errored_batches else ""
        yield "batches", f"{total.batches:,}{failed}"
    if total.bottleneck:
        yield "bottleneck", describe_bottleneck(total.bottleneck)
    for device in result.devices[:DEVICES_SHOWN]:
        spent = device.statistics
        yield (
            "device",
            f"{device.device}: {counted(device.rows, 'row')}, {spent.forward_s:.1f} s in the "
            f"model, {spent.wait_s:.1f} s waiting",
        )
    if len(result.devices) > DEVICES_SHOWN:
        yield "", f"and {counted(len(result.devices) - DEVICES_SHOWN, 'more device')}"


def _times(phases: Mapping[str, float]) -> str:
    """Returns the time that each phase took, in the order of their start."""
    listed = [f"{name} {format_seconds(s)}" for name, s in phases.items() if s >= SHORT_PHASE_S]
    return ", ".join(listed) or "less than a second"


def _places(result: RunResult) -> Iterator[_Fact]:
    for note in result.notes:
        yield "note", note
    if result.vector_store is not None:
        yield "vectors", f"{result.vectors:,} in {result.vector_store}"
    yield "output", result.output
    if result.report is not None:
        yield "report", result.report


def describe_metrics(metrics: Mapping[str, float], problem: str | None) -> list[str]:
    """Returns one line per metric, or one that says why there are none."""
    if problem is not None:
        return [f"metrics    none: {problem}"]
    return [f"{name:<17} {_figure(name, value)}" for name, value in metrics.items()]


def _figure(name: str, value: float) -> str:
    is_count = name.rpartition(".")[2] in ("labelled_rows", "unknown_labels")
    return f"{value:,.0f}" if is_count else f"{value:.4f}"
