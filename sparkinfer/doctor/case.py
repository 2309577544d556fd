"""What is examined: the options of a run, and what earlier checks found for later ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from sparkinfer.config import ScoringConfig
from sparkinfer.doctor.nodes import NodeReport
from sparkinfer.plan.ports import InputTable
from sparkinfer.plan.prelude import Prelude
from sparkinfer.validation import NOT_EMPTY, PATH

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True, init=False)
class ExaminedConfig(ScoringConfig):
    """The options of a run, none of them required; the bundled model is used where none is given.

    `given` says which were given.
    """

    model: str | None = field(
        default_factory=lambda: str(resources.files("sparkinfer.demo") / "model"),
        metadata=PATH | NOT_EMPTY,
    )

    def __init__(self, **values: Any) -> None:
        texts = {"input_col", "input_template"} & set(values)
        stand_ins: dict[str, Any] = {} if texts else {"input_col": "text"}
        if values.get("models"):
            stand_ins["model"] = None
        if values.get("fn"):
            stand_ins = {"model": None}
        super().__init__(**{**stand_ins, **values})
        object.__setattr__(self, "given", frozenset(values))


@dataclass
class Case:
    """What is examined, and what checks so far have found.

    Attributes:
        config: options of the run.
        given: names of the options that were given.
        spark: the session; not set until its check has found it.
        slots: how many tasks run in parallel; None while unknown.
        nodes: the report of each task that was asked what its node has.
        prelude: the steps before the first row; not set until the check of the engine.
        table: the opened input, None while there is none.
    """

    config: ScoringConfig
    given: frozenset[str]
    spark: SparkSession = field(init=False)
    slots: int | None = field(init=False, default=None)
    nodes: Sequence[NodeReport] = ()
    prelude: Prelude = field(init=False)
    table: InputTable | None = None

    @property
    def tasks(self) -> int:
        """How many tasks to ask what their nodes have."""
        return self.slots or self.config.num_workers or 1
