"""Counts the timestamps that microseconds cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparkinfer.files.conform import cut_nanoseconds
from sparkinfer.files.parquet import open_parquet, readable
from sparkinfer.files.schema import match_names
from sparkinfer.rows.reading import READ_BYTES, READ_ROWS, read_batches
from sparkinfer.storage import join


@dataclass(frozen=True)
class CutCounter:
    """Counts them in files; small, since it is sent with every task.

    Attributes:
        root: the folder of the files.
        columns: to look at.
    """

    root: str
    columns: Sequence[str]

    def __call__(self, name: str) -> dict[str, int]:
        """Returns the number for each column of a file; reads only these columns.

        Raises:
            InputError: the file is damaged.
        """
        counts = dict.fromkeys(self.columns, 0)
        path = join(self.root, name)
        with readable(path), open_parquet(path) as file:
            found = match_names(self.columns, file.schema_arrow.names)
            groups = range(file.num_row_groups)
            names = list(found.values())
            for batch in read_batches(file, groups, names, READ_ROWS, READ_BYTES):
                for column, spelled in found.items():
                    counts[column] += cut_nanoseconds(batch.column(spelled))
        return counts
