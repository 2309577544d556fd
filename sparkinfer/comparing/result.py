"""What a comparison has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparkinfer.comparing.differences import EDGES, Differences
from sparkinfer.comparing.speed import Speed


@dataclass(frozen=True)
class Side:
    """One of the two outputs.

    Attributes:
        output: its folder.
        state: of its run; see `RunStatus`.
        rows: that it holds.
        total_rows: of its input, of which not all are scored if it is not finished.
        only_here: rows that the other has not.
        speed: of its run.
    """

    output: str
    state: str
    rows: int
    total_rows: int
    only_here: int
    speed: Speed

    @property
    def is_finished(self) -> bool:
        """Whether every row of the input is there."""
        return self.state == "finished"


@dataclass(frozen=True)
class Change:
    """What a result was in the one output and is in the other.

    Attributes:
        before: in A.
        after: in B.
        rows: or entities, with this change.
    """

    before: str
    after: str
    rows: int


@dataclass(frozen=True)
class RowPair:
    """A row as both outputs have it, values as text, shortened.

    Attributes:
        changed: whether its result is another.
        difference: how far the results are apart; None: one of them has an error.
        row: columns of the input, by name.
        a: the result in A, by column, without a prefix.
        b: the result in B.
    """

    changed: bool
    difference: float | None
    row: Mapping[str, str]
    a: Mapping[str, str]
    b: Mapping[str, str]


@dataclass(frozen=True)
class ModelComparison:
    """How the results of two models differ.

    Attributes:
        name_a: of the model in A; empty: it is alone there.
        name_b: of that in B.
        task: what both do.
        rows: compared, with an error in neither.
        errors_a: rows with an error in A alone.
        errors_b: rows with an error in B alone.
        errors_both: rows with an error in both.
        changed: rows with another result; None: results of the task are numbers, of which none
            need be the same.
        measure: what the difference of a row is.
        changes: the most frequent ones, the first first.
        differences: by what was measured.
        counts: of what else the task has, by what it is.
        labels_a: that only A's model has.
        labels_b: that only B's model has.
        largest: the rows that differ most: those with another result, then by the difference.
        errors: a few rows with an error in one alone.
        notes: what there is to know.
    """

    name_a: str
    name_b: str
    task: str
    rows: int
    errors_a: int
    errors_b: int
    errors_both: int
    changed: int | None
    measure: str
    changes: tuple[Change, ...]
    differences: Mapping[str, Differences]
    counts: Mapping[str, int]
    labels_a: tuple[str, ...]
    labels_b: tuple[str, ...]
    largest: tuple[RowPair, ...]
    errors: tuple[RowPair, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of both, for people; empty if neither has one."""
        names = [name for name in (self.name_a, self.name_b) if name]
        return " / ".join(dict.fromkeys(names))


@dataclass(frozen=True)
class SettingPair:
    """A setting that differs: its name, and what it is in A and in B."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Comparison:
    """How two outputs over the same rows differ.

    Attributes:
        a: the one.
        b: the other.
        columns: by whose values rows were found again.
        is_key: whether the user named them, and each row has values of its own.
        rows: that both have.
        repeated: those among them whose values other rows of their output have, too: which of
            these belong together is not known.
        only_a: a few rows that only A has.
        only_b: a few that only B has.
        settings: that determine the results and differ.
        models: compared.
        notes: what there is to know.
    """

    a: Side
    b: Side
    columns: tuple[str, ...]
    is_key: bool
    rows: int
    repeated: int
    only_a: tuple[Mapping[str, str], ...]
    only_b: tuple[Mapping[str, str], ...]
    settings: tuple[SettingPair, ...]
    models: tuple[ModelComparison, ...]
    notes: tuple[str, ...]

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both outputs."""
        return self.a, self.b

    @property
    def unlike_share(self) -> float | None:
        """The share of all rows whose result is another, 0 to 1, of the model with the most.

        A row that only one output has, or that has an error in one alone, counts as another.
        None: a model's results are numbers, of which none need be the same.
        """
        alone = self.a.only_here + self.b.only_here
        counts = [
            None if one.changed is None else one.changed + one.errors_a + one.errors_b + alone
            for one in self.models
        ]
        known = [count for count in counts if count is not None]
        return max(known) / (self.rows + alone) if len(known) == len(counts) else None

    def as_dict(self) -> dict[str, Any]:
        """Returns the comparison as plain values, ready for JSON."""
        return {**asdict(self), "unlike_share": self.unlike_share, "histogram_edges": list(EDGES)}
