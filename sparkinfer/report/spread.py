"""How long texts were, which labels they were given, and with what confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from sparkinfer.metrics.distributions import CONFIDENCE_BINS, LENGTH_EDGES, MOST_LABELS
from sparkinfer.report import charts
from sparkinfer.report.facts import ModelFacts
from sparkinfer.report.parts import (
    Cell,
    Number,
    Part,
    Picture,
    Table,
    Unknown,
    in_thousands,
    percent,
    plural,
    table_of,
)
from sparkinfer.workers.statistics import ScoringStatistics

MOST_SHOWN = 15
"""Labels that are shown at once, the most frequent ones."""

GENERATING = ("text-generation", "text2text-generation", "summarization", "translation")
"""Tasks whose rows have a reason for their end in place of a label."""

MOST_TICKS = 7
"""Numbers at an axis."""


def length_parts(name: str, model: ModelFacts, total: ScoringStatistics | None) -> Iterator[Part]:
    """Yields the lengths of texts, what was cut, and the padding.

    Args:
        name: of the model, unique on the page.
        model: the model.
        total: what the workers did; None if they did it for several models.
    """
    lengths = model.distributions.lengths
    if sum(lengths):
        yield _lengths(name, model)
    else:
        yield Unknown("Lengths of texts", "How long the texts were is not recorded in this output.")
    if total is not None and total.padded_tokens:
        yield _padding(total)


def _lengths(name: str, model: ModelFacts) -> Picture:
    lengths, cut = model.distributions.lengths, model.distributions.truncated
    shown = _without_tail(lengths)
    cut_shown = [*cut, *[0] * len(shown)][: len(shown)]
    svg = charts.bars(
        f"lengths{name}", shown, _length_ticks(len(shown)), "tokens", notable=cut_shown
    )
    head = ("tokens", "rows", *(("cut",) if cut else ()))
    rows: list[Sequence[Cell]] = [
        (
            _length_bin(at),
            *(Number(in_thousands(one[at])) for one in (shown, cut_shown)[: 1 + bool(cut)]),
        )
        for at in range(len(shown))
    ]
    legend = (("whole", "main"), ("cut", "warn")) if any(cut) else ()
    says = f"{_middle_lengths(lengths)} {_cut(lengths, cut)}"
    return Picture("Lengths of texts", says, svg, table_of(head, rows), legend)


def _without_tail(counts: Sequence[int]) -> list[int]:
    last = max((at for at, count in enumerate(counts) if count), default=0)
    return list(counts[: last + 1])


def _length_bin(at: int) -> str:
    """Returns what a bin of `Distributions.lengths` holds."""
    if at == 0:
        return "none"
    first = LENGTH_EDGES[at - 1]
    if at == len(LENGTH_EDGES):
        return f"{first:,} or more"
    last = LENGTH_EDGES[at] - 1
    return f"{first:,}" if last == first else f"{first:,} to {last:,}"


def _length_ticks(bins: int) -> list[tuple[float, str]]:
    step = -(-bins // MOST_TICKS)
    ticks = [(at + 0.5, charts.shortly(LENGTH_EDGES[at - 1])) for at in range(1, bins, step)]
    return ticks or [(0.5, "0")]


def _middle_lengths(lengths: Sequence[int]) -> str:
    half, most = _quantile(lengths, 0.5), _quantile(lengths, 0.95)
    if half == most:
        return f"Nearly all rows have {_length_bin(half)} tokens."
    return (
        f"The median is at {_length_bin(half)} tokens, the 95th percentile at {_length_bin(most)}."
    )


def _quantile(counts: Sequence[int], share: float) -> int:
    """Returns the bin that a quantile falls into."""
    needed = share * sum(counts)
    return next(at for at, count in enumerate(accumulate(counts)) if count >= needed)


def _cut(lengths: Sequence[int], cut: Sequence[int]) -> str:
    if not cut:
        return "Which of them were cut was not counted."
    if not sum(cut):
        return "None was cut."
    share = percent(sum(cut) / sum(lengths))
    return f"{plural(sum(cut), 'row')} ({share}) were longer than the model takes and cut."


def _padding(total: ScoringStatistics) -> Table:
    most = total.padded_tokens
    batches = plural(total.batches, "batch", "batches")
    rows = [
        ("of texts", Number(in_thousands(total.tokens), total.tokens / most)),
        ("padding", Number(in_thousands(most - total.tokens), 1 - total.tokens / most)),
    ]
    says = (
        f"{percent(total.padding_share)} of the tokens that went through the model were padding, "
        f"in {batches} of {most / max(1, total.batches):,.0f} tokens on average."
    )
    if total.forward_rows < total.rows - total.errors:
        says += f" Repeated texts went through it once: {total.forward_rows:,} texts."
    return Table("Padding", ("tokens", "number"), rows, says)


def label_parts(model: ModelFacts) -> Iterator[Part]:
    """Yields how often each label was predicted; nothing of a task without labels."""
    counts = model.distributions.labels
    total = sum(counts.values()) + model.distributions.other_labels
    if not total:
        if model.labels:
            yield Unknown("Predicted labels", "Their counts are not recorded in this output.")
        return
    order = sorted(counts, key=lambda label: (-counts[label], label))
    most = counts[order[0]] if order else 1
    rows = [_label_row(label, counts[label], most, total) for label in order]
    head = ("label", "rows", "share")
    never = [label for label in model.labels if label not in counts]
    says = f"{plural(len(order), 'label')} predicted"
    says += f", {len(never):,} of the model's {len(model.labels):,} never." if never else "."
    if model.distributions.other_labels:
        says += (
            f" Beyond {MOST_LABELS:,} labels they are counted together: "
            f"{plural(model.distributions.other_labels, 'row')}."
        )
    yield Table(_labels_title(model), head, rows[:MOST_SHOWN], says)
    if len(rows) > MOST_SHOWN:
        title = f"The other {len(rows) - MOST_SHOWN:,} labels"
        yield Table(title, head, rows[MOST_SHOWN:], is_closed=True)


def _labels_title(model: ModelFacts) -> str:
    generates = str(model.settings.get("task")) in GENERATING
    return "Why texts ended" if generates else "Predicted labels"


def _label_row(label: str, count: int, most: int, total: int) -> tuple[str | Number, ...]:
    return label, Number(in_thousands(count), count / most), Number(percent(count / total))


def confidence_parts(name: str, model: ModelFacts) -> Iterator[Part]:
    """Yields how sure the model was; nothing of a task without probabilities."""
    counts = model.distributions.confidences
    total = sum(counts)
    if not total:
        return
    bins = len(counts)
    ticks = [(bins * part / 4, text) for part, text in enumerate(("0", "0.25", "0.5", "0.75", "1"))]
    svg = charts.bars(f"confidence{name}", counts, ticks, "probability of the predicted label")
    cells = [
        (f"{at / bins:.2f} to {(at + 1) / bins:.2f}", Number(in_thousands(count)))
        for at, count in enumerate(counts)
    ]
    tenth = CONFIDENCE_BINS // 10
    sure, unsure = sum(counts[-tenth:]), sum(counts[: bins // 2])
    says = (
        f"{percent(sure / total)} of the rows have 0.9 or more, {percent(unsure / total)} less "
        "than 0.5."
    )
    yield Picture("Confidence", says, svg, table_of(("probability", "rows"), cells))
