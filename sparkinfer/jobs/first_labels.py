"""A look at the first true labels, before hours of scoring end without metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import pyarrow as pa

from sparkinfer.exceptions import JobError
from sparkinfer.logs import get_logger
from sparkinfer.metrics.several import by_model
from sparkinfer.plan.chunks import Chunk
from sparkinfer.plan.plan import Plan
from sparkinfer.rows.reading import ChunkReader

logger = get_logger(__name__)

LABELS_LOOKED_AT = 1000
"""Rows whose true labels are looked at before the first row is scored."""


def warn_of_strange_labels(plan: Plan, chunks: Sequence[Chunk]) -> None:
    """Says so if it looks as if there will be no metrics, of each model."""
    looked_at: dict[str, list[pa.Array]] = {}
    for name, measure in by_model(plan.measure).items():
        column = measure.label_col
        if column is None or not measure.columns:
            continue
        if column not in looked_at:
            looked_at[column] = list(_first_labels(plan, column, chunks))
        labels = measure.look(looked_at[column])
        problem = labels.problem() if labels is not None else None
        if problem is not None:
            logger.warning(
                "%slabel_col=%r: in the first rows, %s; the run continues, and reports no metrics "
                "unless later rows have such a label",
                f"models.{name}: " if name else "",
                column,
                problem,
            )


def _first_labels(plan: Plan, column: str, chunks: Sequence[Chunk]) -> Iterator[pa.Array]:
    """Yields the true labels of the first rows."""
    reader = ChunkReader(plan.read_from, pa.schema([plan.columns.carried.field(column)]))
    left = LABELS_LOOKED_AT
    with suppress(JobError):  # the chunk's own attempt says more
        for batch in reader.read(piece for chunk in chunks for piece in chunk.pieces):
            yield batch.column(0).slice(0, left)
            left -= batch.num_rows
            if left <= 0:
                return
