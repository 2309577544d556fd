"""What tells the inputs of a model apart in the notes of its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparkinfer.models.careful import TOKENIZER, encode_noted
from sparkinfer.models.encoded import Encoded, Inputs
from sparkinfer.models.text_sources import ColumnText, TextSource
from sparkinfer.workers.suspects import DEADLY, Attempt, Suspects


def encode(columns: Any) -> Inputs:
    rows = len(columns[0])
    ids = {"input_ids": np.ones(rows, np.int32)}
    return Inputs.of_one_sequence_each(Encoded(ids, np.ones(rows, np.int64), np.zeros(rows, bool)))


def attempt(folder: Path, launch: str) -> Attempt:
    return Attempt(str(folder), "00000000", launch, has_predecessor=True)


@pytest.mark.parametrize(
    ("rows", "deadly"),
    [
        ([("",), (None,), ("a",)], 0),
        ([("a", ""), ("a", None), (None, "a"), ("", "a")], 1),
        ([("a\0", "b"), ("a", "\0b"), ("a\0b", "")], 0),
    ],
)
def test_no_other_row_is_given_up_with_a_deadly_one(
    tmp_path: Path, rows: list[tuple[str | None, ...]], deadly: int
) -> None:
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    names = [f"c{i}" for i in range(len(columns))]
    batch = pa.RecordBatch.from_arrays(columns, names=names)
    sources = [TextSource("input_col", ColumnText("input_col", name)) for name in names]
    noted: list[list[str]] = []

    class Noting(Suspects):
        def running(self, lane: str, hashes: Any, *, alone: bool = False) -> None:
            noted.append(list(hashes))

    encode_noted(batch.slice(deadly, 1), sources, encode, Noting(attempt(tmp_path, "a")))
    Suspects(attempt(tmp_path, "b")).running(TOKENIZER, noted[0], alone=True)
    encoded = encode_noted(batch, sources, encode, Suspects(attempt(tmp_path, "c")))
    assert encoded.unreadable == {deadly: DEADLY}
