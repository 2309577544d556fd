"""A function over rows whose columns are of many types, and which may fail for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sparkinfer.models.ahead import NOTHING_KNOWN, RowsAhead
from sparkinfer.models.tasks.base import ROW_FIELDS
from sparkinfer.rows.processor import Report
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics

FAILING_WORD = "boring"

FIELDS = (
    pa.field("words", pa.list_(pa.struct([("word", pa.string()), ("share", pa.float32())]))),
    pa.field("shares", pa.list_(pa.float32())),
    pa.field("pair", pa.struct([("first", pa.string()), ("length", pa.int64())])),
    pa.field("is_long", pa.bool_()),
    pa.field("count", pa.int32()),
    pa.field("hash", pa.int64()),
    pa.field("share", pa.float32()),
)


@dataclass(frozen=True)
class Words:
    """Looks at the words of a text; see `ProcessorSpec`.

    Attributes:
        broken: a file; while it is there, a text with one word is an error.
    """

    inputs: tuple[str, ...]
    broken: Path

    prefix = ""
    labels = ()
    replaces_rows = False
    evaluation = None
    verdict = None

    @property
    def fields(self) -> pa.Schema:
        return pa.schema([*FIELDS, *ROW_FIELDS])

    def check(self) -> None:
        pass

    def check_names(self, columns: Sequence[str]) -> None:
        pass

    def check_types(self, inputs: pa.Schema) -> None:
        pass

    def longest_text(self, of_column: Callable[[str], int | None]) -> None:
        pass

    def resolved(self) -> Words:
        return self

    def settings(self) -> dict[str, Any]:
        return {"function": "words"}

    def pinned(self, verdict: Mapping[str, Any]) -> Words:
        return self

    def warm_up(self) -> None:
        pass

    def try_out(self, slot: WorkerSlot, ahead: RowsAhead = NOTHING_KNOWN) -> None:
        pass

    def decided(self, found: None) -> Words:
        return self

    def open(self, slot: WorkerSlot, report: Report) -> _Looking:
        return _Looking(self)


class _Looking:
    def __init__(self, spec: Words) -> None:
        self._spec = spec
        self.statistics = ScoringStatistics()

    def activities(self) -> tuple[None]:
        return (None,)

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            texts = batch.column(batch.schema.get_field_index(self._spec.inputs[0])).to_pylist()
            rows = [self._row(text) for text in texts]
            self.statistics.rows += len(rows)
            yield pa.RecordBatch.from_pylist(rows, schema=self._spec.fields)

    def _row(self, text: str | None) -> dict[str, Any]:
        if text is None:
            return {"error": "text is null"}
        words = text.split()
        if FAILING_WORD in words and self._spec.broken.exists():
            return {"error": "not today"}
        shares = [np.float32(len(word) / 7) for word in words]
        odd = len(words) % 2 == 1
        return {
            "words": [
                {"word": word, "share": None if len(word) == 3 else share}
                for word, share in zip(words, shares, strict=True)
            ],
            "shares": [None if len(word) == 3 else len(word) / 7 for word in words],
            "pair": {"first": words[0], "length": len(text) + 2**60} if odd else None,
            "is_long": None if odd else len(words) > 4,
            "count": None if odd else len(words),
            "hash": None if odd else 2**60 + len(text),
            "share": float("nan") if len(words) == 2 else shares[0] if odd else None,
            "n_tokens": len(words),
            "truncated": False,
        }
