"""What a processor's reducers keep, and the rows of a DataFrame that it is given."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import sparkinfer
from sparkinfer.batch_process.reducers import Reducers
from sparkinfer.batch_process.rows import open_rows


class Total(sparkinfer.MetricReducer):
    """Has a state that leaves out what cannot be pickled."""

    def __init__(self) -> None:
        self.total, self.lock = 0, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"total": self.total}

    def reset(self) -> None:
        self.total = 0

    def per_slot_reduce(self) -> int:
        with self.lock:
            return self.total

    def cross_slot_reduce(self, per_slot_metrics: list[int]) -> int:
        return sum(per_slot_metrics)


def wrapped(rank: int, saved: list[Any]) -> tuple[Reducers, Total]:
    reducers, total = Reducers(rank, lambda: saved), Total()
    reducers.wrap(total, "total", for_training=True, for_validation=True)
    return reducers, total


def test_a_state_that_leaves_something_out_leaves_it_as_it_was_made() -> None:
    saved = []
    for rank in range(2):
        reducers, total = wrapped(rank, [])
        total.total = 3 + rank
        saved.append(reducers.states())
    reducers, total = wrapped(0, saved)
    reducers.begin()
    assert reducers.reduce() == {"total": 7}


def test_numbers_of_a_dataframe_keep_their_digits_and_types(tmp_path: Path) -> None:
    columns = {
        "double": pa.array([0.1, 16777217.0]),
        "float": pa.array([0.5, 1.5], pa.float32()),
        "tiny": pa.array([1, 2], pa.int8()),
        "flag": pa.array([True, False]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows = open_rows(str(tmp_path))
    batch = rows.collate(rows.__getitems__([0, 1]))
    assert batch["double"].dtype == torch.float64
    assert batch["double"].tolist() == [0.1, 16777217.0]
    kinds = [batch[name].dtype for name in ("float", "tiny", "flag")]
    assert kinds == [torch.float32, torch.int8, torch.bool]
