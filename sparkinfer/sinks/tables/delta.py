"""Appends chunks to a Delta table, each once.

A commit of Delta can carry a transaction of the application: here an id made of the run and the
chunk, and as its version the chunk's generation. The table's own log so says what has arrived, in
the same step as the rows. Delta does not refuse a version that is there already: it is read before
each append, and what another writer commits meanwhile under the same id makes ours fail.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from sparkinfer.exceptions import ConfigError, JobError, OutputError
from sparkinfer.files.delta import misread_in
from sparkinfer.files.parquet import open_parquet
from sparkinfer.logs import get_logger
from sparkinfer.messages import first_line
from sparkinfer.plan.ports import Publication
from sparkinfer.storage import is_local_path

logger = get_logger(__name__)

CHUNK = pa.field("sparkinfer_chunk", pa.string())
"""Column that a table has beside those of the output: the run and the chunk of a row."""

GOING_ON, REPLACED = 0, 1
"""Versions of a run's own transaction. Each append carries it, and so does the removal of the run's
rows: of two that are committed at the same time one fails, and looks again."""

TRIES = 10
"""Of an append, while others write to the table."""


class DeltaAppends:
    """The way of one run's chunks into a Delta table; thread-safe. `Arrivals` of a sink.

    Args:
        path: the table's folder.
        run: id of the run.
        columns: of the output.
    """

    def __init__(self, path: str, run: str, columns: pa.Schema) -> None:
        self._path = path
        self._run = run
        self._columns = columns
        self._schema = pa.schema([*columns.remove_metadata(), CHUNK])
        self._lock = threading.Lock()
        self._table: DeltaTable | None = None

    def has_arrived(self, chunk: int, publication: Publication) -> bool:
        """Returns whether the table has a chunk, in this generation or a later one."""
        table = self._opened()
        version = None if table is None else table.transaction_version(self._id(chunk))
        return version is not None and version >= publication.generation

    def deliver(self, chunk: int, paths: Sequence[str], publication: Publication) -> None:
        """Appends a chunk's rows, or puts them in place of its earlier ones, unless it is there.

        Raises:
            JobError: the table does not take them.
            OSError: a file is missing.
        """
        with self._lock:
            for _ in range(TRIES):
                self._refuse_replaced()
                if self.has_arrived(chunk, publication):
                    return
                try:
                    self._append(chunk, paths, publication.generation)
                except CommitFailedError as error:
                    logger.warning("%s: appending again: %s", self._path, first_line(error))
                except DeltaError as error:
                    raise self._refusal(error) from error
            raise JobError(
                f"Delta table {self._path!r}: others write to it all the time, so that {TRIES} "
                "appends failed; run the same command to resume"
            )

    def remove_runs(self, runs: Sequence[str]) -> None:
        """Removes the rows of earlier runs, and keeps these from appending any more."""
        for run in runs:
            try:
                if not self._is_replaced(run):
                    self._remove(run)
            except DeltaError as error:
                raise self._refusal(error) from error

    def _remove(self, run: str) -> None:
        replaced = CommitProperties(app_transactions=[Transaction(_id_of(run), REPLACED)])
        table = self._opened()
        if table is not None:
            table.delete(_is_of(run), commit_properties=replaced)
            if not self._is_replaced(run):  # it had no rows, and nothing was committed
                none = self._schema.empty_table()
                write_deltalake(table, none, mode="append", commit_properties=replaced)
        self._table = None

    def _is_replaced(self, run: str) -> bool:
        """Returns whether another run has taken the place of one; reads the table again."""
        self._table = None
        table = self._opened()
        return table is not None and table.transaction_version(_id_of(run)) == REPLACED

    def _append(self, chunk: int, paths: Sequence[str], generation: int) -> None:
        table = self._opened()
        exists = table is not None and table.transaction_version(self._id(chunk)) is not None
        rows = pa.RecordBatchReader.from_batches(self._schema, self._rows(chunk, paths))
        write_deltalake(
            self._path if table is None else table,
            rows,
            mode="overwrite" if exists else "append",
            predicate=f"{CHUNK.name} = '{self._name(chunk)}'" if exists else None,
            commit_properties=CommitProperties(
                app_transactions=[
                    Transaction(self._id(chunk), generation),
                    Transaction(_id_of(self._run), GOING_ON),
                ]
            ),
        )

    def _rows(self, chunk: int, paths: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for path in paths:
            with open_parquet(path) as file:
                for batch in file.iter_batches(columns=self._columns.names):
                    name = pa.repeat(pa.scalar(self._name(chunk)), batch.num_rows)
                    table = pa.Table.from_batches([batch]).append_column(CHUNK.name, name)
                    yield from table.cast(self._schema).to_batches()

    def _opened(self) -> DeltaTable | None:
        if self._table is None:
            self._table = open_table(self._path)
        return self._table

    def _refuse_replaced(self) -> None:
        """Raises JobError if another run has taken the place of this one."""
        if self._is_replaced(self._run):
            raise JobError(
                f"Delta table {self._path!r}: another run on this output has taken the place of "
                "this one, which appends nothing more; run again once no other run writes there"
            )

    def _name(self, chunk: int) -> str:
        return f"{self._run}-{chunk:08d}"

    def _id(self, chunk: int) -> str:
        return _id_of(self._name(chunk))

    def _refusal(self, error: Exception) -> JobError:
        return JobError(
            f"Delta table {self._path!r} does not take rows ({first_line(error)}); look at it, and "
            "run the same command to resume"
        )


def _id_of(name: str) -> str:
    """Returns the id of the transactions of a run, or of a chunk."""
    return f"sparkinfer-{name}"


def _is_of(run: str) -> str:
    return f"{CHUNK.name} >= '{run}-' AND {CHUNK.name} < '{run}.'"  # a dot follows the dash


def open_table(path: str, version: int | None = None) -> DeltaTable | None:
    """Returns a Delta table as it is, or was; None if there is none."""
    try:
        return DeltaTable(path, version=version)
    except TableNotFoundError:
        return None


def check_table(path: str, columns: pa.Schema) -> None:
    """Raises UsageError unless a table can take an output's columns, or be made of them."""
    taken = next((name for name in columns.names if name.lower() == CHUNK.name), None)
    if taken is not None:
        raise ConfigError(
            f"delta.table={path!r}: the table gets a column {CHUNK.name!r}, and the output has "
            f"{taken!r}; leave that out with --carry-cols"
        )
    odd = misread_in(path)
    if odd is not None:
        raise ConfigError(
            f"delta.table={path!r}: the package deltalake misreads {odd!r} in a folder's name; "
            "give another"
        )
    try:
        wanted = Schema.from_arrow(pa.schema([*columns.remove_metadata(), CHUNK]))
        table = open_table(path)
    except (DeltaError, OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"Delta table {path!r} cannot be written ({first_line(error)}); name another folder, "
            "or leave columns that it does not take out with --carry-cols"
        ) from error
    if table is not None:
        _refuse_others(path, _types(wanted), _types(table.schema()))
    elif is_local_path(path):
        _refuse_folder(path)


def _refuse_folder(path: str) -> None:
    """Raises OutputError unless a table's folder can be made."""
    folder = Path(path.removeprefix("file://"))
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"Delta table {path!r}: {str(nearest)!r} is no folder that can be written; name another"
        )


def _types(schema: Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema.fields}


def _refuse_others(path: str, wanted: dict[str, Any], there: dict[str, Any]) -> None:
    """Raises OutputError for a table with other columns."""
    lines = [
        f"{name} is {there.get(name, 'not there')}, expected {wanted.get(name, 'none')}"
        for name in {**wanted, **there}
        if there.get(name) != wanted.get(name)
    ]
    if lines:
        raise OutputError(
            f"Delta table {path!r} has other columns than the output: {'; '.join(lines)}; name "
            "another folder, or choose columns with --carry-cols"
        )
