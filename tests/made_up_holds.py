"""A function over batches that waits until the test lets its rows go on."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

FUNCTION = f"{__name__}:hold"


def write_held(file: Path, marks: Path, stages: Sequence[int], rows: int) -> None:
    """Writes row groups of so many rows, each of which is in a stage; those of stage 0 never wait.

    Args:
        file: the Parquet file.
        marks: folder by which workers and the test tell one another how far they are.
        stages: of each row group.
        rows: of each row group.
    """
    marks.mkdir()
    count = rows * len(stages)
    of_rows = [stage for stage in stages for _ in range(rows)]
    table = pa.table({"id": range(count), "marks": [str(marks)] * count, "stage": of_rows})
    pq.write_table(table, file, row_group_size=rows)


def hold(batch: pd.DataFrame) -> pd.DataFrame:
    """Returns a batch, not before its stage may go on; notes meanwhile who holds it."""
    marks, stage = Path(batch["marks"].iloc[0]), int(batch["stage"].max())
    while stage and not (marks / f"go-{stage}").exists():
        (marks / f"held-{stage}-{who()}").touch()
        time.sleep(0.05)
    return batch.assign(who=who())


def who() -> str:
    """Returns the name of the standalone worker of this process, else its number."""
    names = [part for part in Path.cwd().parts if part.startswith("worker-")]
    return names[-1] if names else str(os.getpid())


def let_go(marks: Path, stage: int) -> None:
    """Lets the rows of a stage go on."""
    (marks / f"go-{stage}").touch()


def held(marks: Path, stage: int) -> set[str]:
    """Returns who holds rows of a stage."""
    return {file.name.split("-", 2)[2] for file in marks.glob(f"held-{stage}-*")}
