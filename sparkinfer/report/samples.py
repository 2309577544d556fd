"""Rows with an error, a few for each of the most frequent reasons, read from an output's files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparkinfer.jobs.records import ChunkRecord
from sparkinfer.logs import get_logger
from sparkinfer.messages import shortened, shown
from sparkinfer.metrics.measure import ERROR
from sparkinfer.rows.tally import reasons_of
from sparkinfer.storage import file_system, join

logger = get_logger(__name__)

MOST_REASONS = 5
"""Reasons of which there are samples."""

ROWS_EACH = 3
"""Rows of each."""

VALUE_LENGTH = 300
"""Characters of a value."""

KNOWN_REASONS = 200
"""Reasons whose chunks are kept in memory: a model may give a different one for each row."""

Sample = tuple[str, dict[str, str]]
"""The reason, and the row's other columns that are not null, as texts."""


class ErrorFiles:
    """Which files have rows with which error; takes records as they come."""

    def __init__(self) -> None:
        self._by_reason: dict[str, list[list[str]]] = {}

    def add(self, record: ChunkRecord) -> None:
        """Takes a record."""
        for reason in record.reasons:
            if reason in self._by_reason or len(self._by_reason) < KNOWN_REASONS:
                chunks = self._by_reason.setdefault(reason, [])
                if len(chunks) < ROWS_EACH:  # each has one such row at least
                    chunks.append(list(record.files))

    def of(self, reason: str) -> list[str]:
        """Returns the names of files; among them are enough rows with that error."""
        return [name for files in self._by_reason.get(reason, ()) for name in files]


def read_samples(
    output: str, files: ErrorFiles, reasons: Sequence[str], prefixes: Mapping[str, str]
) -> list[Sample]:
    """Returns rows with an error, a few for each reason; no more files are read than it takes.

    A file that is not there, or cannot be read, is passed over.

    Args:
        output: the output folder.
        files: where which errors are.
        reasons: the most frequent ones first.
        prefixes: of the columns of each model, by its name.
    """
    wanted = reasons[:MOST_REASONS]
    found: dict[str, list[Sample]] = {reason: [] for reason in wanted}
    columns = {name: prefix + ERROR for name, prefix in prefixes.items()}
    looked_into: set[str] = set()
    for reason in wanted:
        for name in files.of(reason):
            if len(found[reason]) >= ROWS_EACH:
                break
            if name not in looked_into:
                looked_into.add(name)
                for sample in _samples(join(output, name), columns, found):
                    if len(found[sample[0]]) < ROWS_EACH:
                        found[sample[0]].append(sample)
    return [sample for reason in wanted for sample in found[reason]]


def _samples(path: str, columns: Mapping[str, str], wanted: Collection[str]) -> Iterator[Sample]:
    """Yields the first rows of a file with each of some errors.

    Args:
        path: of the file.
        columns: with the errors of each model, by its name.
        wanted: the errors.
    """
    fs, name = file_system(path)
    try:
        with fs.open(name, "rb") as handle:
            file = pq.ParquetFile(handle)
            for group in range(file.num_row_groups):
                errors = file.read_row_group(group, columns=list(columns.values()))
                rows = _rows_with(errors, columns, wanted)
                if rows:
                    taken = file.read_row_group(group).take(pa.array(list(rows), pa.int64()))
                    yield from zip(rows.values(), _as_texts(taken, columns.values()), strict=True)
    except FileNotFoundError:
        return  # not published yet, or its rows are only in a vector store
    except (OSError, pa.ArrowException, KeyError) as error:
        logger.warning("rows with an error are not read from %s: %s", path, error)


def _rows_with(
    errors: pa.Table, columns: Mapping[str, str], wanted: Collection[str]
) -> dict[int, str]:
    """Returns the numbers of the first rows with each of some errors, and which that is."""
    given = {name: errors.column(column) for name, column in columns.items()}
    are_valid = [column.is_valid().to_numpy() for column in given.values()]
    failed = np.flatnonzero(np.logical_or.reduce(are_valid))
    taken = {name: column.take(pa.array(failed)) for name, column in given.items()}
    found: dict[str, list[int]] = {reason: [] for reason in wanted}
    for row, reason in zip(failed.tolist(), reasons_of(taken), strict=True):
        if reason in found and len(found[reason]) < ROWS_EACH:
            found[reason].append(row)
    return {row: reason for reason, rows in found.items() for row in rows}


def _as_texts(rows: pa.Table, without: Collection[str]) -> list[dict[str, str]]:
    """Returns the values of rows that are not null, shortened, by the column's name."""
    names = [name for name in rows.column_names if name not in without]
    texts = [_texts(rows.column(name)) for name in names]
    return [
        {name: text for name, text in zip(names, row, strict=True) if text is not None}
        for row in (zip(*texts, strict=True) if texts else [()] * rows.num_rows)
    ]


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    try:
        values = column.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # bytes; lists and the like
        values = [None if value is None else shown(value) for value in column.to_pylist()]
    return [None if value is None else shortened(value, VALUE_LENGTH) for value in values]
