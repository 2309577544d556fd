"""A look at the first rows of an output."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as pads

from sparkinfer.logs import get_logger
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.storage import file_system, join
from sparkinfer.terminal import printable_lines

logger = get_logger(__name__)

CELL_WIDTH = 48
"""Maximum width of a cell, in characters."""

WIDE = 200
"""Characters of a line where it is not known how many a terminal shows."""

FILES_READ = 4
"""Of an output: the first one may have no rows."""


def first_rows(output: str, run: str, rows: int = 5) -> str:
    """Returns the first rows of an output as a table, long texts shortened.

    It is empty where there are none, or where they cannot be shown: the run has succeeded.

    Args:
        output: its folder.
        run: id of the run that wrote it.
        rows: how many, at most.
    """
    try:
        return _table(output, ParquetFolder(output).of_runs({run})[:FILES_READ], rows)
    except Exception:  # each store has its own errors, each type its own way to be shown
        logger.debug("the first rows are not shown", exc_info=True)
        return ""


def _table(output: str, names: Sequence[str], rows: int) -> str:
    fs, folder = file_system(output)
    paths = [join(folder, name) for name in names]
    if not paths:
        return ""
    first = pads.dataset(paths, filesystem=fs, format="parquet").head(rows)
    if not len(first):
        return ""
    # From pandas 3 on a missing text is shown as NaN, which an error is not.
    texts = {f.name: object for f in first.schema if pa.types.is_string(f.type)}
    frame = first.to_pandas(integer_object_nulls=True).astype(texts)
    for name in texts:
        frame[name] = frame[name].where(frame[name].notna(), None)
    width = shutil.get_terminal_size((WIDE, 1)).columns
    table = frame.to_string(index=False, max_colwidth=CELL_WIDTH, line_width=width)
    return f"\n{printable_lines(table)}\n"
