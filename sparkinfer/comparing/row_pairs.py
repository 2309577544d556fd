"""Rows of two outputs as text, for people: few of them, read once it is known which ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparkinfer.comparing.outputs import ERROR, ScoredModel, ScoredOutput
from sparkinfer.comparing.result import RowPair
from sparkinfer.messages import shortened, shown

MOST_CHARACTERS = 300
"""Of a value."""

MOST_COLUMNS = 6
"""Of the input that are shown of a row."""

MOST_NUMBERS = 8
"""Of a list that are shown."""


class FoundPair(NamedTuple):
    """A pair of rows; see `RowPair`.

    Attributes:
        changed: whether the result is another.
        difference: how far the results are apart.
        a: place of the row in the one output.
        b: place in the other.
    """

    changed: bool
    difference: float | None
    a: int
    b: int


class PairedRows:
    """Reads rows of both outputs.

    Args:
        outputs: that hold them.
        key: columns that are shown before others.
        texts: columns that are shown after others, as they are long.
    """

    def __init__(
        self,
        outputs: tuple[ScoredOutput, ScoredOutput],
        key: Sequence[str],
        texts: Sequence[str],
    ) -> None:
        self._outputs = outputs
        wanted = dict.fromkeys([*key, *texts, *outputs[0].carried, *outputs[1].carried])
        known = [name for name in wanted if any(name in one.schema.names for one in outputs)]
        self._columns = sorted(known[:MOST_COLUMNS], key=lambda name: name in texts)

    def of(
        self,
        pairs: Sequence[FoundPair],
        models: tuple[ScoredModel, ScoredModel],
        results: Sequence[str],
    ) -> tuple[RowPair, ...]:
        """Returns pairs of rows.

        Args:
            pairs: where they are.
            models: whose results are shown.
            results: names of these, without a prefix.
        """
        if not pairs:
            return ()
        names = [
            _names(model, results, one) for model, one in zip(models, self._outputs, strict=True)
        ]
        rows_a = self._read(0, [one.a for one in pairs], names[0])
        rows_b = self._read(1, [one.b for one in pairs], names[1])
        return tuple(
            RowPair(
                one.changed,
                one.difference,
                self._inputs({**rows_b[one.b], **rows_a[one.a]}),
                _results(rows_a[one.a], names[0]),
                _results(rows_b[one.b], names[1]),
            )
            for one in pairs
        )

    def alone(self, side: int, places: Sequence[int]) -> tuple[Mapping[str, str], ...]:
        """Returns the columns of the input of rows of one output."""
        rows = self._read(side, places, {})
        return tuple(self._inputs(rows[place]) for place in places)

    def _read(
        self, side: int, places: Sequence[int], names: Mapping[str, str]
    ) -> dict[int, dict[str, Any]]:
        output = self._outputs[side]
        inputs = [name for name in self._columns if name in output.schema.names]
        return output.rows_at(places, list(dict.fromkeys([*inputs, *names.values()])))

    def _inputs(self, row: Mapping[str, Any]) -> dict[str, str]:
        return {name: as_text(row[name]) for name in self._columns if name in row}


def _names(model: ScoredModel, results: Sequence[str], output: ScoredOutput) -> dict[str, str]:
    """Returns the full names of results that an output has, by their names without a prefix."""
    full = {**model.columns, ERROR: model.error}
    return {name: full[name] for name in results if full[name] in output.schema.names}


def _results(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    return {name: as_text(row[full]) for name, full in names.items()}


def as_text(value: Any) -> str:
    """Returns a value as text, shortened."""
    if isinstance(value, str):
        return shortened(value, MOST_CHARACTERS)
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, list) and all(isinstance(one, float) for one in value):
        more = [f"... {len(value):,} numbers"] if len(value) > MOST_NUMBERS else []
        return f"[{', '.join([*map(as_text, value[:MOST_NUMBERS]), *more])}]"
    return "null" if value is None else shortened(shown(value), MOST_CHARACTERS)
