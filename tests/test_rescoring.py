"""Rows with an error are scored again among rows that are not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from sparkinfer.rows.rescoring import Rescoring
from sparkinfer.workers.slot import WorkerSlot
from sparkinfer.workers.statistics import ScoringStatistics

FIELDS = pa.schema([("s_length", pa.int64()), ("s_error", pa.string())])


class Lengths:
    """Counts characters; yields its rows in batches of another size, some of them read ahead."""

    inputs, fields, prefix = ("text",), FIELDS, "s_"

    def __init__(self, size: int) -> None:
        self.size = size
        self.statistics = ScoringStatistics()
        self.seen: list[str] = []

    def open(self, slot: Any, report: Any) -> Lengths:
        return self

    def process(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held: list[str] = []
        for batch in batches:
            held += batch.column(0).to_pylist()
            while len(held) >= self.size:
                yield self._scored(held[: self.size])
                held = held[self.size :]
        yield self._scored(held)

    def _scored(self, texts: list[str]) -> pa.RecordBatch:
        self.seen += texts
        fail = [text == "bad" for text in texts]
        lengths = [None if failed else len(text) for text, failed in zip(texts, fail, strict=True)]
        errors = ["still" if failed else None for failed in fail]
        columns = [pa.array(lengths, pa.int64()), pa.array(errors, pa.string())]
        return pa.RecordBatch.from_arrays(columns, names=["length", "error"])


def rescore(rows: Sequence[tuple[str | None, int | None, str | None]], size: int, cut: int) -> Any:
    texts, lengths, errors = zip(*rows, strict=True)
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "s_length": pa.array(lengths, pa.int64()),
            "s_error": pa.array(errors, pa.string()),
        }
    )
    inner = Lengths(size)
    rescoring = Rescoring(inner)  # type: ignore[arg-type]
    assert rescoring.inputs == ("text", "s_length", "s_error")
    processor = rescoring.open(WorkerSlot("cpu", 1), lambda statistics: None)
    found = list(processor.process(table.to_batches(max_chunksize=cut)))
    assert all(batch.schema.names == ["length", "error"] for batch in found)
    return inner.seen, [tuple(row.values()) for batch in found for row in batch.to_pylist()]


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("cut", [1, 3, 100])
def test_only_rows_with_an_error_and_a_text_are_scored_and_what_fails_stays(
    size: int, cut: int
) -> None:
    rows = [
        ("one", 3, None),
        ("three", None, "worker: died"),
        (None, None, "text is null"),
        ("bad", None, "first"),
        ("four", 4, None),
        ("seven", None, "oom"),
        ("", None, "oom"),
        ("last", 4, None),
    ]
    seen, found = rescore(rows, size, cut)
    assert seen == ["three", "bad", "seven", ""]
    assert found == [
        (3, None),
        (5, None),
        (None, "text is null"),
        (None, "first"),
        (4, None),
        (5, None),
        (0, None),
        (4, None),
    ]


def test_rows_without_errors_pass_through() -> None:
    seen, found = rescore([("a", 1, None)] * 10, 4, 3)
    assert (seen, found) == ([], [(1, None)] * 10)
