"""An output that is compared: what wrote it, which models, and its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from sparkinfer.exceptions import InputError, OutputError
from sparkinfer.files.conform import conform
from sparkinfer.files.parquet import at_once, open_parquet, parquet_schema, readable
from sparkinfer.jobs.ledger import Ledger
from sparkinfer.jobs.manifest import Manifest, read_manifest
from sparkinfer.jobs.records import Records
from sparkinfer.messages import first_line
from sparkinfer.models.text_sources import TemplateText
from sparkinfer.report.own_metrics import labels_of, settings_by_model
from sparkinfer.report.status import RunStatus, read_status
from sparkinfer.rows.reading import (
    READ_BYTES,
    READ_ROWS,
    column_places,
    encoded_bytes,
    read_batches,
)
from sparkinfer.sinks.parquet import ParquetFolder
from sparkinfer.storage import join, sizes_in

FUNCTION = "function"
"""In place of a task where functions made the rows."""

PLACE = pa.field("place of the row", pa.int64())
"""Rows of the output before one; the last column of what is read."""

ERROR = "error"
ROW_COLUMNS = ("n_tokens", "truncated", ERROR)
"""What is said of a row beside its result."""


@dataclass(frozen=True)
class ScoredModel:
    """What made some columns of an output: one of its models, its only one, or functions.

    Attributes:
        name: of the model among several; empty for one alone.
        task: its name, or `FUNCTION`.
        prefix: of its columns.
        labels: in the order of the probabilities.
        inputs: columns that it read.
        columns: of its results, without the prefix: by their full names.
        settings: those that determine its columns, by name.
    """

    name: str
    task: str
    prefix: str
    labels: tuple[str, ...]
    inputs: tuple[str, ...]
    columns: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def error(self) -> str:
        """Name of the column that says why a row has no result; a function may have none."""
        return self.prefix + ERROR


@dataclass(frozen=True)
class ScoredOutput:
    """An output.

    Attributes:
        path: its folder.
        status: how far its run is.
        manifest: of its run.
        files: their names.
        file_rows: rows of each.
        schema: of the files.
        devices: rows by what the model ran on.
    """

    path: str
    status: RunStatus
    manifest: Manifest
    files: tuple[str, ...]
    file_rows: tuple[int, ...]
    schema: pa.Schema
    devices: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(self.file_rows)

    @property
    def is_finished(self) -> bool:
        """Whether every row of the input is there."""
        return self.status.state == "finished"

    @cached_property
    def carried(self) -> tuple[str, ...]:
        """Columns of the input that it has."""
        asked = self.manifest.settings.get("columns") or {}
        return tuple(name for name in self.schema.names if name in asked)

    @cached_property
    def models(self) -> Mapping[str, ScoredModel]:
        """What made the other columns, by name."""
        return {model.name: model for model in _models(self)}

    def bytes_of(self, columns: pa.Schema) -> int:
        """Returns about the bytes of some columns of all rows in memory.

        Parquet says how many it takes itself; what repeats takes more when it is read.
        """
        stored = sum(at_once(lambda name: self._stored_bytes(name, columns.names), self.files))
        first = next(self.read(columns), None)
        sampled = 0 if first is None else first.nbytes * self.rows // first.num_rows
        return max(stored, sampled)

    def read(self, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yields some columns of all rows, with the types that are given, and their `PLACE`.

        Raises:
            InputError: a file is damaged, or a value has no equal in its type.
        """
        before = 0
        for name in self.files:
            for batch in self._read(name, columns.names):
                found = [_column(batch, one) for one in columns]
                places = pa.array(np.arange(before, before + batch.num_rows))
                before += batch.num_rows
                schema = pa.schema([*columns, PLACE])
                if batch.num_rows:
                    yield pa.RecordBatch.from_arrays([*found, places], schema=schema)

    def rows_at(self, places: Collection[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Returns some columns of a few rows, by their places."""
        starts = list(accumulate(self.file_rows, initial=0))
        found: dict[int, dict[str, Any]] = {}
        for name, start, rows in zip(self.files, starts, self.file_rows, strict=False):
            wanted = sorted(place - start for place in places if start <= place < start + rows)
            if wanted:
                taken = self._rows_in(name, wanted, columns)
                found.update({start + place: row for place, row in taken})
        return found

    def _rows_in(
        self, name: str, wanted: Sequence[int], columns: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields rows of a file; no row group without any of them is decoded."""
        path, before = join(self.path, name), 0
        with readable(path), open_parquet(path) as file:
            for group in range(file.metadata.num_row_groups):
                end = before + file.metadata.row_group(group).num_rows
                if any(before <= place < end for place in wanted):
                    yield from _taken(_batches(file, [group], columns), before, wanted)
                before = end

    def _read(self, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        path = join(self.path, name)
        with readable(path), open_parquet(path) as file:
            yield from _batches(file, range(file.metadata.num_row_groups), columns)

    def _stored_bytes(self, name: str, columns: Sequence[str]) -> int:
        path = join(self.path, name)
        with readable(path), open_parquet(path) as file:
            places = column_places(file, columns)
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            return sum(encoded_bytes(group, places) for group in groups)


def open_output(path: str) -> ScoredOutput:
    """Returns an output.

    Raises:
        OutputError: no run wrote there, or there are no rows in files.
        InputError: a file is damaged.
    """
    status, manifest = read_status(path), read_manifest(path)
    if manifest is None:
        raise OutputError(f"output {path!r} is gone")
    files, devices = _done(path, manifest)
    if not files:
        where = f": its vectors are in {status.vector_store}" if status.vector_store else ""
        raise OutputError(f"output {path!r} holds no files with rows{where}; compare another")
    rows = tuple(at_once(lambda name: _rows_of(join(path, name)), files))
    if status.state == "finished" and sum(rows) != status.rows_made:
        raise OutputError(
            f"output {path!r} holds {sum(rows):,} rows, but its records say {status.rows_made:,}; "
            "give the command that wrote it again, which scores what is missing"
        )
    schema = parquet_schema(join(path, files[0]))
    return ScoredOutput(path, status, manifest, files, rows, schema, devices)


def _done(path: str, manifest: Manifest) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the files that hold what was recorded, and the rows by what the model ran on.

    A file that is another than its record says is of no use, whoever else can read it.
    """
    sink, visible = ParquetFolder(path, manifest.run), sizes_in(path)
    files: list[str] = []
    devices = Counter[str]()
    for record in Ledger(Records(path, manifest.run), sink, manifest.chunks).standing():
        files += [name for name, size in record.files.items() if visible.get(name) == size]
        devices.update(record.devices or {record.device: record.rows})
    return tuple(sorted(files)), dict(devices)


def _rows_of(path: str) -> int:
    with readable(path), open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _batches(file: Any, groups: Iterable[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    return read_batches(file, groups, columns, READ_ROWS, READ_BYTES)


def _taken(
    batches: Iterable[pa.RecordBatch], before: int, wanted: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for batch in batches:
        end = before + batch.num_rows
        for place in wanted:
            if before <= place < end:
                [row] = batch.slice(place - before, 1).to_pylist()
                yield place, row
        before = end


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    column = batch.column(batch.schema.get_field_index(field.name))
    try:
        return conform(column, field.type)
    except pa.ArrowException as error:
        raise InputError(
            f"column {field.name!r} has values of type {column.type} that are none of "
            f"{field.type}, which the other output has ({first_line(error)}); name other columns "
            "with --on"
        ) from error


def _models(output: ScoredOutput) -> Iterator[ScoredModel]:
    by_name = settings_by_model(output.manifest)
    prefixes = {
        name: str(settings.get("output_prefix") or "") for name, settings in by_name.items()
    }
    made = [name for name in output.schema.names if name not in output.carried]
    for name, settings in by_name.items():
        task, prefix = str(settings.get("task")), prefixes[name]
        own = {
            column.removeprefix(prefix): column
            for column in made
            if prefix == max(filter(column.startswith, prefixes.values()), key=len, default=None)
        }
        columns = {column: full for column, full in own.items() if column not in ROW_COLUMNS}
        if "fn" in settings:
            task, columns = FUNCTION, {one: one for one in made if one != prefix + ERROR}
        labels, inputs = labels_of(output.manifest, name), _inputs(settings)
        yield ScoredModel(name, task, prefix, labels, inputs, columns, settings)


def _inputs(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the columns that a model read."""
    template = settings.get("input_template")
    texts = TemplateText(template).columns if template else (settings.get("input_col"),)
    named = (*texts, settings.get("text_pair_col"), *(settings.get("fn.input_cols") or ()))
    return tuple(dict.fromkeys(str(name) for name in named if name is not None))
