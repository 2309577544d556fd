"""Draws the packages of sparkinfer, each above those that it imports, as an SVG.

The colours are readable on light and on dark pages: what is written stands on boxes of their own.
Written to docs/images/ by scripts/make_reference.py.
"""

from __future__ import annotations

from html import escape

WIDTH, GAP, PADDING, LINE = 640, 8, 10, 18
ENTRY, JOB, ROWS, BASE = "#dbe7fb", "#fbe6cf", "#d9f0df", "#e6e6ea"
INK, QUIET, EDGE = "#1c2333", "#3c4557", "#8a93a6"

LAYERS = (
    (("cli, arguments, comparing, doctor, tuning", ("commands, and what they print",), ENTRY),),
    (("api", ("run, score, map_batches, load, search, torch_batch_process",), ENTRY),),
    (("report", ("status, the report page",), ENTRY),),
    (
        ("batch_process", ("a user's processor, in ranks",), JOB),
        ("display", ("progress, in terminals and notebooks",), JOB),
    ),
    (
        ("jobs", ("what is missing; records, lease,", "resume, retry"), JOB),
        ("engines", ("local, pandas_udf, horovod:", "they move rows"), JOB),
    ),
    (
        ("sinks", ("Parquet folder, vector stores, tables",), JOB),
        ("spark", ("session, slots, GPUs, errors",), JOB),
    ),
    (
        (
            "plan",
            (
                "input → columns → workers → model → gate → Plan",
                "ports: what jobs and engines ask of one another",
            ),
            JOB,
        ),
    ),
    (("functions", ("a user's functions over batches",), ROWS),),
    (("rows", ("reading → scoring loop → writing; several models over one read",), ROWS),),
    (("models", ("tasks, tokens, scorer; gate → backends → checkpoint",), ROWS),),
    (("metrics", ("counted by workers, merged by the driver",), ROWS),),
    (
        ("workers", ("slot, GPU, watchdog",), BASE),
        ("batching", ("planner; dynamic batching",), BASE),
        ("files", ("listing, types, CSV, JSON",), BASE),
        ("tracking", ("MLflow",), BASE),
    ),
    (
        (
            "storage, config, validation, exceptions, redaction, terminal …",
            ("what all of them stand on",),
            BASE,
        ),
    ),
)

"""From the top: the boxes of a layer, each a title, lines and a colour."""


def picture() -> str:
    """Returns the SVG."""
    drawn: list[str] = []
    top = 0
    for layer in LAYERS:
        height = 2 * PADDING + LINE * (1 + max(len(lines) for _, lines, _ in layer)) - 4
        width = (WIDTH - GAP * (len(layer) - 1)) / len(layer)
        for place, (title, lines, colour) in enumerate(layer):
            drawn += _box(place * (width + GAP), top, width, height, title, lines, colour)
        top += height + GAP
    names = "; ".join(title for layer in LAYERS for title, _, _ in layer)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {WIDTH + 2} {top - GAP + 2}" '
        f'role="img" font-family="system-ui, sans-serif">'
    )
    title = f"<title>Packages, each above those that it imports: {escape(names)}</title>"
    return "\n".join([head, title, *drawn, "</svg>", ""])


def _box(
    left: float,
    top: int,
    width: float,
    height: int,
    title: str,
    lines: tuple[str, ...],
    colour: str,
) -> list[str]:
    middle = left + width / 2
    parts = [
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{height}" rx="6" '
        f'fill="{colour}" stroke="{EDGE}"/>',
        _text(middle, top + PADDING + 13, title, f'font-size="15" font-weight="600" fill="{INK}"'),
    ]
    for number, line in enumerate(lines, start=1):
        y = top + PADDING + 13 + LINE * number
        parts.append(_text(middle, y, line, f'font-size="13" fill="{QUIET}"'))
    return parts


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle" {style}>{escape(text)}</text>'
