"""How a rank reads the token ids of its row groups: through Petastorm, or by Arrow alone.

A reader is given the row groups of one rank; who reads which is decided before. Each row group
comes out once and whole, and is checked against what was prepared: a row that is missing, doubled
or out of place is an error, never a silent gap.
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
    N_TOKENS,
    ROW,
    TOKENS,
    TRUNCATED,
    PreparedFile,
)
from sparkinfer.exceptions import EngineUnavailableError, RowConservationError
from sparkinfer.models.tokens import Encoded, EncodedRows
from sparkinfer.storage import file_system, join, renames_atomically

Columns = Mapping[str, npt.NDArray[Any]]
"""A row group: its number columns, and for each model input the values of all rows in one array."""

Reader = Callable[[str, Sequence[PreparedFile], Sequence[str]], Iterator[Columns]]
"""Reads row groups (folder, row groups, model inputs); the order is the reader's own."""

LAST_PYARROW_OF_PETASTORM = 14

RESULTS_QUEUE_SIZE = 2
"""Row groups that Petastorm holds ready; its default of 50 would hold seconds of work in memory."""


def read_row_groups(
    reader: Reader, folder: str, files: Sequence[PreparedFile], input_names: Sequence[str]
) -> Iterator[tuple[PreparedFile, EncodedRows, pa.Table]]:
    """Yields each row group once: what it is, its token ids, and the columns that it carries.

    Args:
        reader: reads the token ids.
        folder: see `PreparedInput`.
        files: the row groups to read; there may be none.
        input_names: the model's inputs.

    Raises:
        RowConservationError: what was read is not what was prepared.
    """
    expected = {file.first_row: file for file in files}
    for columns in reader(folder, files, input_names) if files else ():
        rows = columns[ROW]
        file = expected.pop(int(rows[0]), None)
        if file is None:
            raise RowConservationError(
                f"{folder}: the row group from row {int(rows[0])} on was read and not expected, or "
                "read twice; run again, and with --set horovod.reader=pyarrow if it happens again"
            )
        _check_rows(folder, file, rows)
        errors, carried = _read_beside(folder, file)
        yield file, _encoded_rows(columns, input_names, errors), carried
    if expected:
        missing = sum(file.rows for file in expected.values())
        raise RowConservationError(
            f"{folder}: {missing} rows in {len(expected)} prepared row groups were not read; run "
            "again, and with --set horovod.reader=pyarrow if it happens again"
        )


def _check_rows(folder: str, file: PreparedFile, rows: npt.NDArray[Any]) -> None:
    wanted = np.arange(file.first_row, file.first_row + file.rows)
    if not np.array_equal(rows, wanted):
        raise RowConservationError(
            f"{folder}: {len(rows)} rows of {file.name} were read, expected {file.rows} in the "
            "order that they were prepared in; run again, and with --set horovod.reader=pyarrow "
            "if it happens again"
        )


def _encoded_rows(
    columns: Columns, input_names: Sequence[str], errors: Mapping[int, str]
) -> EncodedRows:
    """Returns the rows of a row group; those with the same token ids share one encoding."""
    lengths = columns[N_TOKENS].astype(np.int64)
    is_null = lengths < 0
    encoded = Encoded(
        {name: columns[name] for name in input_names},
        np.maximum(lengths, 0),
        columns[TRUNCATED].astype(np.bool_),
        dict(errors),
    )
    starts = encoded.starts
    ids = encoded.columns["input_ids"]
    seen: dict[object, int] = {}
    places = np.full(len(lengths), -1, dtype=np.int64)
    for row in np.flatnonzero(~is_null):
        # Two texts without tokens may have failed for different reasons.
        key = row if row in errors else ids[starts[row] : starts[row] + lengths[row]].tobytes()
        places[row] = seen.setdefault((key, encoded.truncated[row]), int(row))
    return EncodedRows(places, encoded)


def _read_beside(folder: str, file: PreparedFile) -> tuple[dict[int, str], pa.Table]:
    """Returns the errors of a row group's rows by place, and the carried columns."""
    fs, name = file_system(join(folder, TOKENS, file.name))
    with fs.open(name, "rb") as handle:
        reasons = pq.ParquetFile(handle).read([ERROR]).column(0)
    errors = {}
    if reasons.null_count < len(reasons):
        errors = {row: why for row, why in enumerate(reasons.to_pylist()) if why is not None}
    fs, name = file_system(join(folder, CARRIED, file.name))
    with fs.open(name, "rb") as handle:
        return errors, pq.ParquetFile(handle).read()


def read_with_pyarrow(
    folder: str, files: Sequence[PreparedFile], input_names: Sequence[str]
) -> Iterator[Columns]:
    """Yields row groups read by `pyarrow.dataset`, in the order given."""
    fs, root = file_system(join(folder, TOKENS))
    numbers = [ROW, N_TOKENS, TRUNCATED]
    for file in files:
        dataset = pads.dataset(f"{root}/{file.name}", filesystem=fs, format="parquet")
        table = dataset.to_table(columns=[*numbers, *input_names])
        columns = {name: table.column(name).to_numpy() for name in numbers}
        for name in input_names:
            columns[name] = pc.list_flatten(table.column(name)).to_numpy()
        yield columns


def read_with_petastorm(
    folder: str, files: Sequence[PreparedFile], input_names: Sequence[str]
) -> Iterator[Columns]:
    """Yields row groups read by Petastorm, through its torch loader.

    One thread and no shuffling; one pass (the loader's own default is to go on for ever). The
    torch loader takes neither texts nor lists of different lengths, so a transform in the reading
    thread makes of each row group one row of flat arrays, which also spares a loop over rows.
    """
    from petastorm import TransformSpec, make_batch_reader
    from petastorm.pytorch import DataLoader

    fs, root = file_system(join(folder, TOKENS))
    names = [ROW, N_TOKENS, TRUNCATED, *input_names]
    types = {ROW: np.int64, TRUNCATED: np.uint8}
    fields = [(name, types.get(name, np.int32), (None,), False) for name in names]
    reader = make_batch_reader(
        [fs.unstrip_protocol(f"{root}/{file.name}") for file in files],
        schema_fields=names,
        reader_pool_type="thread",
        workers_count=1,
        results_queue_size=RESULTS_QUEUE_SIZE,
        shuffle_row_groups=False,
        num_epochs=1,
        transform_spec=TransformSpec(
            lambda frame: _as_one_row(frame, input_names), edit_fields=fields
        ),
    )
    with DataLoader(reader, batch_size=1, collate_fn=lambda rows: rows[0]) as loader:
        yield from loader


def _as_one_row(frame: Any, input_names: Sequence[str]) -> Any:
    """Returns a row group as one row: each column one flat array."""
    import pandas as pd

    none = np.zeros(0, np.int32)
    columns = {
        ROW: frame[ROW].to_numpy(),
        N_TOKENS: frame[N_TOKENS].to_numpy(),
        TRUNCATED: frame[TRUNCATED].to_numpy().astype(np.uint8),
    }
    for name in input_names:
        columns[name] = np.concatenate([none, *frame[name]])
    return pd.DataFrame({name: [values] for name, values in columns.items()})


READERS: dict[str, Reader] = {
    "petastorm": read_with_petastorm,
    "pyarrow": read_with_pyarrow,
}


def choose_reader(wanted: str, output: str) -> str:
    """Returns the name of the reader that is used.

    Args:
        wanted: `auto`, or a name in `READERS`.
        output: the run's output folder, below which the prepared rows will be.

    Raises:
        EngineUnavailableError: Petastorm was asked for, and is absent or cannot work.
    """
    problem = _petastorm_problem(output)
    if wanted == "auto":
        # Petastorm opens object stores in ways of its own, with settings of its own.
        is_local = renames_atomically(output)
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
        return f"petastorm {petastorm} is installed, expected 0.12.1 (0.13 leaves out rows)"
    if int(pa.__version__.partition(".")[0]) > LAST_PYARROW_OF_PETASTORM:
        return (
            f"pyarrow {pa.__version__} is installed, and Petastorm uses what was removed after "
            f"{LAST_PYARROW_OF_PETASTORM}"
        )
    return None
