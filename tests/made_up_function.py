"""A function over rows that the package does not have, made of this file and its last line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sparkinfer.config import ScoringConfig
from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.tasks.base import ROW_FIELDS
from sparkinfer.plan.processors import PROCESSORS
from sparkinfer.rows.processor import Report
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics


@dataclass(frozen=True)
class Shout:
    """Upper-cases a text: no model, no gate, nothing encoded ahead; see `PlannedProcessor`."""

    inputs: tuple[str, ...]
    prefix: str
    tried_out_with: str = ""

    labels = ()
    replaces_rows = False
    evaluation = None
    verdict = None

    @property
    def fields(self) -> pa.Schema:
        fields = [pa.field("shouted", pa.string()), *ROW_FIELDS]
        return pa.schema([field.with_name(self.prefix + field.name) for field in fields])

    def check(self) -> None:
        pass

    def check_names(self, columns: Sequence[str]) -> None:
        assert set(self.inputs) <= set(columns)

    def check_types(self, inputs: pa.Schema) -> None:
        assert inputs.field(0).type == pa.string()

    def longest_text(self, of_column: Callable[[str], int | None]) -> int | None:
        return of_column(self.inputs[0])

    def resolved(self) -> Shout:
        return self

    def settings(self) -> dict[str, Any]:
        return {"function": "shout"}

    def pinned(self, verdict: Mapping[str, Any]) -> Shout:
        return self

    def warm_up(self) -> None:
        pass

    def try_out(self, slot: WorkerSlot, ahead: RowsAhead = NOTHING_KNOWN) -> str:
        return "!"

    def decided(self, found: str) -> Shout:
        return replace(self, tried_out_with=found)

    def open(self, slot: WorkerSlot, report: Report) -> _Shouting:
        return _Shouting(self, report)


class _Shouting:
    def __init__(self, spec: Shout, report: Report) -> None:
        self._spec = spec
        self._report = report
        self.statistics = ScoringStatistics()

    def activities(self) -> tuple[None]:
        return (None,)

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            texts = batch.column(batch.schema.get_field_index(self._spec.inputs[0]))
            shouted = pc.binary_join_element_wise(
                pc.utf8_upper(texts), self._spec.tried_out_with, ""
            )
            error = pc.if_else(pc.is_null(texts), "text is null", None)
            columns = [
                shouted,
                pa.nulls(len(texts), pa.int32()),
                pa.nulls(len(texts), pa.bool_()),
                error.cast(pa.string()),
            ]
            fields = replace(self._spec, prefix="").fields
            self.statistics.rows += len(texts)
            self._report(self.statistics)
            yield pa.RecordBatch.from_arrays(columns, schema=fields)


def shout(config: ScoringConfig) -> Shout:
    return Shout((str(config.input_col),), config.output_prefix)


PROCESSORS["shout"] = shout
