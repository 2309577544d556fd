"""How a rank reads the token ids of its row groups: through Petastorm, or with Arrow alone.

A reader is given the row groups of one rank; which rank reads which is decided beforehand. Each row
group is returned once and whole, and is checked against what was prepared: a row that is missing,
duplicated or out of order is an error, never a silent gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from sparkinfer.engines.horovod.prepare import (
    CARRIED,
    ERROR,
    KEPT,
    LENGTHS,
    N_TOKENS,
    OF_OTHERS,
    ROW,
    SEQUENCES,
    TOKENS,
    TRUNCATED,
    PreparedFile,
    of_encoding,
)
from sparkinfer.exceptions import EngineUnavailableError, RowConservationError
from sparkinfer.models.encoded import Encoded, EncodedRows, Inputs
from sparkinfer.storage import file_system, is_local_path, join

Columns = Mapping[str, npt.NDArray[Any]]
"""A row group: its number columns, and for each list column the values of all rows in one array."""

Reader = Callable[[str, Sequence[PreparedFile], Sequence[str]], Iterator[Columns]]
"""Reads row groups (folder, row groups, list columns), in any order."""

LAST_PYARROW_OF_PETASTORM = 14

RESULTS_QUEUE_SIZE = 2
"""Row groups that Petastorm prefetches; its default of 50 would hold seconds of work in memory."""


def read_row_groups(
    reader: Reader, folder: str, files: Sequence[PreparedFile]
) -> Iterator[tuple[PreparedFile, tuple[EncodedRows, ...], pa.Table]]:
    """Yields each row group once: its description, its token ids and its carried columns.

    There are token ids of each tokenizer that the rows were given to.

    Args:
        reader: reads the token ids.
        folder: of the prepared files.
        files: the row groups to read; may be empty.

    Raises:
        RowConservationError: what was read differs from what was prepared.
    """
    list_columns = _list_columns(folder, files[0]) if files else []
    expected = {file.first_row: file for file in files}
    for columns in reader(folder, files, list_columns) if files else ():
        rows = columns[ROW]
        file = expected.pop(int(rows[0]), None)
        if file is None:
            raise RowConservationError(
                f"{folder}: the row group that starts at row {int(rows[0])} was read unexpectedly "
                "or twice; run again, and with --set horovod.reader=pyarrow if it happens again"
            )
        _check_rows(folder, file, rows)
        encoded = tuple(
            _encoded_rows(_of_encoding(columns, number), *_read_beside(folder, file, number))
            for number in range(count_encodings(list_columns))
        )
        yield file, encoded, _read_columns(join(folder, CARRIED, file.name), None)
    if expected:
        missing = sum(file.rows for file in expected.values())
        raise RowConservationError(
            f"{folder}: {missing} rows in {len(expected)} prepared row groups were not read; run "
            "again, and with --set horovod.reader=pyarrow if it happens again"
        )


def count_encodings(list_columns: Sequence[str]) -> int:
    """Returns how many tokenizers the rows with these columns were given to."""
    return sum(OF_OTHERS.sub("", name, count=1) == LENGTHS for name in list_columns)


def _of_encoding(columns: Columns, number: int) -> Columns:
    """Returns what one of the tokenizers made, by its own names."""
    if not number:
        return {name: one for name, one in columns.items() if not OF_OTHERS.match(name)}
    before = of_encoding(number)
    return {
        name.removeprefix(before): one for name, one in columns.items() if name.startswith(before)
    }


def _check_rows(folder: str, file: PreparedFile, rows: npt.NDArray[Any]) -> None:
    wanted = np.arange(file.first_row, file.first_row + file.rows)
    if not np.array_equal(rows, wanted):
        raise RowConservationError(
            f"{folder}: {len(rows)} rows of {file.name} were read, expected {file.rows} in the "
            "order in which they were prepared; run again, and with --set horovod.reader=pyarrow "
            "if it happens again"
        )


def read_carried(
    folder: str, files: Sequence[PreparedFile]
) -> Iterator[tuple[PreparedFile, pa.Table]]:
    """Yields each row group's columns, for rows that were not encoded ahead."""
    for file in files:
        yield file, _read_columns(join(folder, CARRIED, file.name), None)


def _list_columns(folder: str, file: PreparedFile) -> list[str]:
    """Returns the names of the columns with a list per row: token columns and their lengths."""
    fs, name = file_system(join(folder, TOKENS, file.name))
    with fs.open(name, "rb") as handle:
        schema = pq.ParquetFile(handle).schema_arrow
    return [field.name for field in schema if pa.types.is_list(field.type)]


def _encoded_rows(columns: Columns, errors: Mapping[int, str], kept: pa.Table) -> EncodedRows:
    """Returns the rows of a row group; rows with the same tokens share one input."""
    counts = columns[SEQUENCES].astype(np.int64)
    starts = np.cumsum(counts) - counts
    beside = (ROW, N_TOKENS, TRUNCATED, SEQUENCES, LENGTHS)
    fed = {name: values for name, values in columns.items() if name not in beside}
    has_text = columns[N_TOKENS] >= 0
    encoded = Encoded(
        fed,
        columns[LENGTHS].astype(np.int64),
        np.repeat(columns[TRUNCATED].astype(np.bool_), counts),
        {int(starts[row]): reason for row, reason in errors.items() if has_text[row]},
    )
    unreadable = {row: reason for row, reason in errors.items() if not has_text[row]}
    indices = _indices(columns, fed, errors, kept)
    return EncodedRows(indices, Inputs(encoded, starts, kept), unreadable)


def _indices(
    columns: Columns, fed: Columns, errors: Mapping[int, str], kept: pa.Table
) -> npt.NDArray[np.int64]:
    """Returns for each row the first row with the same input, -1 if the row is null."""
    n_tokens = columns[N_TOKENS].astype(np.int64)
    is_null = n_tokens < 0
    ends = np.cumsum(np.maximum(n_tokens, 0))
    counts = columns[SEQUENCES].astype(np.int64)
    first = np.cumsum(counts) - counts
    told_apart = [values for name, values in fed.items() if name != "attention_mask"]
    beside = list(zip(*(column.to_pylist() for column in kept.columns), strict=True))
    seen: dict[object, int] = {}
    indices = np.full(len(n_tokens), -1, dtype=np.int64)
    for row in np.flatnonzero(~is_null):
        tokens = slice(ends[row] - n_tokens[row], ends[row])
        key: object = tuple(values[tokens].tobytes() for values in told_apart)
        key = (key, beside[row]) if beside else key
        cuts = columns[LENGTHS][first[row] : first[row] + columns[SEQUENCES][row]].tobytes()
        # Two texts without tokens may have failed for different reasons.
        key = row if row in errors else (key, columns[TRUNCATED][row], cuts)
        indices[row] = seen.setdefault(key, int(row))
    return indices


def _read_columns(path: str, names: list[str] | None) -> pa.Table:
    fs, name = file_system(path)
    with fs.open(name, "rb") as handle:
        return pq.ParquetFile(handle).read(names)


def _read_beside(folder: str, file: PreparedFile, number: int) -> tuple[dict[int, str], pa.Table]:
    """Returns the errors of a row group's rows by position, and what was kept of their inputs.

    Args:
        folder: of the prepared files.
        file: the row group.
        number: of the tokenizer.
    """
    fs, name = file_system(join(folder, TOKENS, file.name))
    before = of_encoding(number)
    with fs.open(name, "rb") as handle:
        file_of_tokens = pq.ParquetFile(handle)
        all_names = file_of_tokens.schema_arrow.names
        names = [one for one in all_names if one.startswith(before + KEPT)]
        found = file_of_tokens.read([before + ERROR, *names])
    reasons = found.column(before + ERROR)
    errors = {}
    if reasons.null_count < len(reasons):
        errors = {row: why for row, why in enumerate(reasons.to_pylist()) if why is not None}
    kept = found.select(names).rename_columns([one.removeprefix(before + KEPT) for one in names])
    return errors, kept


def _number_columns(list_columns: Sequence[str]) -> list[str]:
    """Returns the names of the columns with a number per row beside those with a list."""
    befores = map(of_encoding, range(count_encodings(list_columns)))
    return [ROW, *(one + name for one in befores for name in (N_TOKENS, TRUNCATED, SEQUENCES))]


def read_with_pyarrow(
    folder: str, files: Sequence[PreparedFile], list_columns: Sequence[str]
) -> Iterator[Columns]:
    """Yields row groups read by `pyarrow.dataset`, in the order given."""
    fs, root = file_system(join(folder, TOKENS))
    for file in files:
        dataset = pads.dataset(f"{root}/{file.name}", filesystem=fs, format="parquet")
        numbers = _number_columns(list_columns)
        table = dataset.to_table(columns=[*numbers, *list_columns])
        columns = {name: table.column(name).to_numpy() for name in numbers}
        for name in list_columns:
            columns[name] = pc.list_flatten(table.column(name)).to_numpy()
        yield columns


def read_with_petastorm(
    folder: str, files: Sequence[PreparedFile], list_columns: Sequence[str]
) -> Iterator[Columns]:
    """Yields row groups read by Petastorm, through its torch loader.

    One thread, no shuffling, one epoch (the loader's own default is to repeat forever). The torch
    loader accepts neither strings nor lists of different lengths, so a transform in the reading
    thread turns each row group into one row of flat arrays, which also avoids a loop over rows.
    """
    from petastorm import TransformSpec, make_batch_reader
    from petastorm.pytorch import DataLoader

    fs, root = file_system(join(folder, TOKENS))
    names = [*_number_columns(list_columns), *list_columns]
    types = {ROW: np.int64, TRUNCATED: np.uint8}
    kinds = [types.get(OF_OTHERS.sub("", name, count=1), np.int32) for name in names]
    fields = [(name, kind, (None,), False) for name, kind in zip(names, kinds, strict=True)]
    reader = make_batch_reader(
        [fs.unstrip_protocol(f"{root}/{file.name}") for file in files],
        schema_fields=names,
        reader_pool_type="thread",
        workers_count=1,
        results_queue_size=RESULTS_QUEUE_SIZE,
        shuffle_row_groups=False,
        num_epochs=1,
        transform_spec=TransformSpec(
            lambda frame: _as_one_row(frame, list_columns), edit_fields=fields
        ),
    )
    with DataLoader(reader, batch_size=1, collate_fn=lambda rows: rows[0]) as loader:
        yield from loader


def _as_one_row(frame: Any, list_columns: Sequence[str]) -> Any:
    """Returns a row group as a single row in which each column is one flat array."""
    import pandas as pd

    none = np.zeros(0, np.int32)
    columns = {name: frame[name].to_numpy() for name in _number_columns(list_columns)}
    for name in [name for name in columns if name.endswith(TRUNCATED)]:
        columns[name] = columns[name].astype(np.uint8)
    for name in list_columns:
        columns[name] = np.concatenate([none, *frame[name]])
    return pd.DataFrame({name: [values] for name, values in columns.items()})


READERS: dict[str, Reader] = {
    "petastorm": read_with_petastorm,
    "pyarrow": read_with_pyarrow,
}


def choose_reader(wanted: str, output: str) -> str:
    """Returns the name of the reader to use.

    Args:
        wanted: `auto`, or a name in `READERS`.
        output: the run's output folder, below which the prepared rows will be.

    Raises:
        EngineUnavailableError: Petastorm was requested, and is missing or cannot work.
    """
    problem = _petastorm_problem(output)
    if wanted == "auto":
        # Petastorm opens object stores in its own way, with its own settings.
        is_local = is_local_path(output)
        return "petastorm" if problem is None and is_local else "pyarrow"
    if wanted == "petastorm" and problem is not None:
        raise EngineUnavailableError(
            f"horovod.reader='petastorm': {problem}; use --set horovod.reader=pyarrow, or install "
            "petastorm==0.12.1 'pyarrow<15' 'numpy<2'"
        )
    return wanted


def _petastorm_problem(output: str) -> str | None:
    """Returns why Petastorm cannot be used here, None if it can; does not import it."""
    try:
        petastorm = metadata.version("petastorm")
    except metadata.PackageNotFoundError:
        return "the package petastorm is not installed"
    if "#" in output or "?" in output:
        return f"it reads output={output!r} as a URL that ends before the first # or ?"
    if not petastorm.startswith("0.12."):
        return f"petastorm {petastorm} is installed, expected 0.12.1 (0.13 skips rows)"
    if int(pa.__version__.partition(".")[0]) > LAST_PYARROW_OF_PETASTORM:
        return (
            f"pyarrow {pa.__version__} is installed, but Petastorm uses functions removed after "
            f"{LAST_PYARROW_OF_PETASTORM}"
        )
    return None
