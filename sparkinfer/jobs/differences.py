"""What has changed since a run began, and keeps it from going on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from sparkinfer.exceptions import ResumeError
from sparkinfer.files.listing import InputFile
from sparkinfer.models.backends import PLAIN
from sparkinfer.models.backends.base import Acceleration
from sparkinfer.models.gate import candidates
from sparkinfer.models.options import ModelOptions
from sparkinfer.models.processor import ModelScoring
from sparkinfer.plan.snapshot import differences
from sparkinfer.plan.table_state import Mark, TableState
from sparkinfer.rows.processor import PlannedProcessor
from sparkinfer.rows.several import members_of

MOST_DIFFERENCES = 10
"""Number that an error lists."""


def refuse_other_settings(output: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ResumeError, listing differences, unless all settings of now were the same before.

    What an older version did not keep was as it is by default: null.
    """
    lines = [
        f"{name} was {before[name]!r}, is {now[name]!r}" if name in before else f"{name} is new"
        for name in now
        if before.get(name) != now[name]
    ]
    _refuse(output, "was started with different settings", lines)


def refuse_other_way(output: str, verdict: Mapping[str, Any], processor: PlannedProcessor) -> None:
    """Raises ResumeError, listing differences, if models are asked to run otherwise than they did.

    For an output that is finished, where nothing is tried out any more. A format or backend that
    was asked for then as well, and was rejected, is no difference.

    Args:
        output: the output folder.
        verdict: as its manifest keeps it.
        processor: as configured.
    """
    lines = []
    for name, one in members_of(processor).items():
        kept = verdict.get("models", {}).get(name) if name else verdict
        if isinstance(one, ModelScoring) and kept:
            label = f"models.{name}." if name else ""
            lines += [f"{label}{line}" for line in _other_way(kept, one.options)]
    _refuse(output, "is finished, and was made in another way", lines)


def _other_way(kept: Mapping[str, Any], options: ModelOptions) -> list[str]:
    """Returns how one model ran and how it is asked to, where that differs."""
    way = Acceleration(**kept["accepted"])
    asked = {
        "dtype": (way.dtype, options.dtype),
        "acceleration": (way.backend, options.acceleration),
    }
    other = {name: pair for name, pair in asked.items() if pair[1] not in ("auto", pair[0])}
    rejected = {name for name, _ in kept["rejected"]}
    if not other or (way.dtype == "float32" and _would_try(options, kept["device"]) <= rejected):
        return []
    return [f"{name} was {was!r}, is {now!r}" for name, (was, now) in other.items()]


def _would_try(options: ModelOptions, device: str) -> set[str]:
    """Returns the names of the ways that are tried before plain float32; tries none.

    Of `auto`, a format that every such device tries: this may be another device.
    """
    if options.dtype == "auto":
        options = replace(options, dtype="float16" if device == "cuda" else "float32")
    return {str(way) for way in candidates(options, device) if way != PLAIN}


def refuse_other_input(
    output: str,
    before: Sequence[InputFile],
    now: Sequence[InputFile],
    may_grow: bool,
    needed: Collection[str],
) -> None:
    """Raises ResumeError, listing differences, unless the input is unchanged.

    Args:
        output: the output folder.
        before: the input's files as they were.
        now: the input's files.
        may_grow: whether there may be new files, and files that are done may be gone.
        needed: names of files that are still to be read.
    """
    known, there = {file.name for file in before}, {file.name for file in now}
    gone = known - there - set(needed)
    if may_grow:
        before = [file for file in before if file.name not in gone]
        now = [file for file in now if file.name in known]
    lines = differences(before, now)
    only_gone = len(lines) == len(gone) and gone == known - there
    _refuse(output, "is from an input that has changed", lines, _GONE_ARE_DONE * only_gone)


_GONE_ARE_DONE = (
    "All rows of the files that are gone are scored: give --incremental to keep them, and to score "
    "new files from now on. Or "
)


def refuse_changed_table(
    output: str, table: str, before: TableState, now: TableState, mark: Mark | None = None
) -> NoReturn:
    """Raises ResumeError, saying what a table was and what it is.

    Args:
        output: the output folder.
        table: its name.
        before: what it was when it was copied.
        now: what it is.
        mark: of the rows compared, if new ones may be added; None: all are.
    """
    counts = f"{before.rows} rows then, {now.rows} now"
    what = counts if before.rows != now.rows else f"{now.rows} rows, of which some have changed"
    up_to = f" up to {mark.column} {mark.value}" if mark is not None else ""
    advice = "" if mark is not None else "--incremental with --incremental-col to score new rows, "
    raise ResumeError(
        f"output {output!r} is from {table} as it was copied at {before.taken}, and has "
        f"changed since{up_to}: {what}. Give {advice}another output, or --overwrite to score "
        "everything again"
    )


def _refuse(output: str, what: str, lines: list[str], advice: str = "") -> None:
    if not lines:
        return
    shown = lines[:MOST_DIFFERENCES] + (["..."] if len(lines) > MOST_DIFFERENCES else [])
    raise ResumeError(
        f"output {output!r} {what}: {'; '.join(shown)}. {advice}"
        f"{'u' if advice else 'U'}ndo the changes to resume it, name another folder, or give "
        "--overwrite to score everything again"
    )
