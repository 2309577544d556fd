"""Rescores only the rows with an error and replaces them with the results.

The rows' texts are taken from the published files and staged as a separate input, with the position
of each row. The engine scores that input like any other. Each published file with a row whose error
is gone is then rewritten, with all other rows and columns unchanged, and replaced.

Rows are rescored in rounds: what a round has mended is published and recorded when it ends.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkinfer.exceptions import ConfigError, JobError, RowConservationError
from sparkinfer.jobs.lease import Lease
from sparkinfer.jobs.manifest import ChunkRecord, Manifest, ManifestFolder
from sparkinfer.jobs.output import Output
from sparkinfer.jobs.replacement import Replacer
from sparkinfer.jobs.result import Retried
from sparkinfer.metrics.measure import Measure
from sparkinfer.models.scorer import NULL_TEXT
from sparkinfer.plan.chunks import ChunkLimits, cut_chunks
from sparkinfer.plan.plan import Plan
from sparkinfer.plan.ports import ChunkTask, ScoredChunk
from sparkinfer.plan.prelude import Prelude
from sparkinfer.plan.progress import Progress
from sparkinfer.plan.snapshot import read_row_groups
from sparkinfer.rows.columns import Columns
from sparkinfer.rows.reading import InputFolders
from sparkinfer.storage import file_system, join, make_folder

FILE, ROW, TEXT, ERROR = "__file", "__row", "__text", "error"
"""Columns of the staged rows: which published file of the round, which row of it, its text. `error`
is a scored column's name without a prefix."""

STAGED = pa.schema([(FILE, pa.int32()), (ROW, pa.int64()), (TEXT, pa.string())])

ROUND_ROWS = 1 << 18
"""Size at which a round ends: its rows' scores are held in memory, and a crash costs a round."""

GROUP_ROWS, GROUP_BYTES = 4096, 64 << 20
"""Size at which a row group of the staged rows ends."""


@dataclass
class _Round:
    """Rows that are rescored and published together.

    Attributes:
        name: of the file with the staged rows.
        files: published files, grouped by chunk, each with its chunk's record.
        rows: number of staged rows.
        waiting: numbers of the chunks of staged rows that are not yet rescored.
        scored: paths of the rescored rows.
    """

    name: str
    files: list[tuple[ChunkRecord, str]]
    rows: int
    waiting: set[int] = field(default_factory=set)
    scored: list[str] = field(default_factory=list)


def refuse_without_text(columns: Columns) -> None:
    """Raises ConfigError if the output would not hold the text."""
    kept = columns.carried.names
    if len(columns.inputs) != 1:
        raise ConfigError(
            f"retry_errors=true with the input columns {columns.inputs.names}: only rows with one "
            "input column are rescored; score again with --overwrite"
        )
    for name in columns.inputs.names:
        if name not in kept:
            raise ConfigError(
                f"retry_errors=true with carry_cols={kept}: the texts are read from the output, "
                f"and {name!r} is not kept there; score again with --overwrite, with it in "
                "carry_cols if errors are to be retried"
            )


class ErrorRetry:
    """One retry on an output whose lease is held: `stage`, then `run`.

    Args:
        prelude: of the run; its processor is needed only if there are rows to rescore.
        manifest: of the output.
        limits: of the chunks in which rows are rescored.
        output: holds the files.
        folder: holds the records.
        lease: held by the run.
    """

    def __init__(
        self,
        prelude: Prelude,
        manifest: Manifest,
        limits: ChunkLimits,
        output: Output,
        folder: ManifestFolder,
        lease: Lease,
    ) -> None:
        self._config = prelude.config
        self._prelude = prelude
        self._manifest = manifest
        self._limits = limits
        self._output = output
        self._folder = folder
        self._lease = lease
        measure = prelude.measure(manifest.labels)
        self._replacer = Replacer(prelude.config, measure, output, folder, lease)
        self._staging = output.staging_folder(lease.epoch, f"retry-{uuid.uuid4().hex}")
        self._rounds: list[_Round] = []
        self._by_chunk: dict[int, _Round] = {}
        self._mended_rows = 0
        self._lock = threading.Lock()

    def stage(self) -> bool:
        """Stages the rows to rescore where no reader sees them; returns whether there are any."""
        make_folder(self._staging)
        known = {chunk.number for chunk in self._manifest.chunks}
        records = self._folder.records(self._output.sizes)
        found = (r for r in records if r.number in known and _retryable(r))
        for number, of_round in enumerate(_cut_rounds(found, ROUND_ROWS)):
            staged = self._stage_round(f"rows-{number:05d}.parquet", of_round)
            if staged.rows:
                self._rounds.append(staged)
        return bool(self._rounds)

    def run(self, display: Callable[[Progress], AbstractContextManager[object]]) -> Retried:
        """Rescores the staged rows and replaces the files of those that are mended.

        Raises:
            JobError: a worker failed for good, or the lease was lost; replaced files are recorded.
        """
        plan = self._plan()
        self._output.fence(self._lease.epoch)
        self._output.unfinish()
        tasks = [task for staged in self._rounds for task in self._cut(staged)]
        rows = sum(staged.rows for staged in self._rounds)
        self._progress = Progress(rows, len(tasks))
        with display(self._progress):
            self._prelude.engine.score(plan, tasks, self, self._progress)
            self._progress.end()
        unscored = sum(bool(staged.waiting) for staged in self._rounds)
        if unscored:
            raise RowConservationError(f"{unscored} rounds of rows were not rescored; run again")
        return Retried(
            rows, self._mended_rows, self._progress, plan.workers, plan.processor.verdict
        )

    def commit(self, scored: ScoredChunk) -> None:
        """Takes rescored rows; a round's rows are published once they are complete."""
        with self._lock:
            self._take(scored)

    def note_deaths(self, number: int, deaths: int) -> None:
        """Records nothing: these numbers are not those of the output's chunks."""

    def _plan(self) -> Plan:
        """Returns how the staged rows are rescored: like all others, under other column names."""
        processor = self._prelude.processor.renamed((TEXT,), prefix="")
        indices = pa.schema([STAGED.field(FILE), STAGED.field(ROW)])
        columns = Columns(indices, pa.schema([STAGED.field(TEXT)]), processor.fields)
        return Plan(
            processor=processor,
            columns=columns,
            measure=Measure(),
            read_from=InputFolders(self._staging),
            staging=join(self._staging, "engine"),
            workers=self._prelude.workers,
            stall_timeout_s=self._config.stall_timeout_s,
        )

    def _stage_round(self, name: str, records: Iterable[ChunkRecord]) -> _Round:
        files = [(record, file) for record in records for file in record.files]
        error_column = self._config.output_prefix + ERROR
        rows = 0
        fs, path = file_system(join(self._staging, name))
        with fs.open(path, "wb") as handle, pq.ParquetWriter(handle, STAGED) as writer:
            found = (
                _numbered(index, table)
                for index, (_, file) in enumerate(files)
                for table in _rows_with_error(
                    join(str(self._config.output), file), self._config.input_col, error_column
                )
            )
            for table in _regrouped(found):
                writer.write_table(table, row_group_size=table.num_rows)
                rows += table.num_rows
        return _Round(name, files, rows)

    def _cut(self, staged: _Round) -> list[ChunkTask]:
        """Returns the tasks of a round; no two rounds share one."""
        row_groups = read_row_groups(
            InputFolders(self._staging), [staged.name], [TEXT], STAGED.names
        )
        chunks = cut_chunks(row_groups, self._limits, len(self._by_chunk))
        staged.waiting = {chunk.number for chunk in chunks}
        self._by_chunk.update({chunk.number: staged for chunk in chunks})
        return [ChunkTask(chunk, join(self._staging, "scored", chunk.name)) for chunk in chunks]

    def _take(self, scored: ScoredChunk) -> None:
        staged = self._by_chunk[scored.chunk.number]
        paths = [join(scored.staging, file.name) for file in scored.files]
        staged.waiting.discard(scored.chunk.number)
        staged.scored += paths
        if not staged.waiting:
            self._publish(staged)
        errors = sum(file.tally.errors for file in scored.files)
        self._progress.commit(scored.chunk.rows, errors)

    def _publish(self, staged: _Round) -> None:
        mended = self._mended(staged)
        indices = pc.unique(mended[FILE]).to_pylist()
        for _, group in groupby(indices, key=lambda index: staged.files[index][0].number):
            files = list(group)
            record, _ = staged.files[files[0]]
            folder = join(self._staging, f"merged-{record.number:08d}")
            make_folder(folder)
            for index in files:
                self._rewrite(
                    staged.files[index][1], folder, mended.filter(pc.equal(mended[FILE], index))
                )
            self._replacer.replace(record, folder, [staged.files[index][1] for index in files])
            self._output.remove_folder(folder)
        self._mended_rows += mended.num_rows

    def _mended(self, staged: _Round) -> pa.Table:
        """Returns the rescored rows of a round that have no error, in order of file and row.

        Raises:
            RowConservationError: a row was lost or duplicated.
        """
        schema = self._plan().columns.output.remove_metadata()
        table = pa.concat_tables([_read(path, schema) for path in staged.scored])
        table = table.sort_by([(FILE, "ascending"), (ROW, "ascending")])
        keys = pa.schema([STAGED.field(FILE), STAGED.field(ROW)])
        if not table.select(keys.names).equals(_read(join(self._staging, staged.name), keys)):
            raise RowConservationError(
                f"{staged.rows} rows were to be rescored, but the {table.num_rows} returned are "
                "not the same ones; none of them were published. Run again"
            )
        return table.filter(pc.is_null(table[ERROR]))

    def _rewrite(self, name: str, folder: str, mended: pa.Table) -> None:
        prefix = self._config.output_prefix
        scored = mended.drop([FILE, ROW])
        scored = scored.rename_columns([prefix + column for column in scored.column_names])
        rewrite(
            join(str(self._config.output), name),
            join(folder, name),
            mended[ROW].to_numpy(),
            scored,
        )


def rewrite(source: str, target: str, rows: npt.NDArray[np.int64], columns: pa.Table) -> None:
    """Rewrites a Parquet file with other values in some rows of some columns.

    Rows, their order, row groups, schema and metadata are kept, except that INT96 timestamps become
    Parquet's current timestamp type, in UTC. One row group is held in memory.

    Args:
        source: the file.
        target: where to write the new one.
        rows: numbers of the rows, ascending, int64 (rows,).
        columns: their new values, with the names of columns of the file.
    """
    fs, name = file_system(source)
    target_fs, target_name = file_system(target)
    with fs.open(name, "rb") as handle:
        # Spark's INT96 timestamps may be outside the range of nanoseconds.
        file = pq.ParquetFile(handle, coerce_int96_timestamp_unit="us")
        schema = _writable(file)
        with (
            target_fs.open(target_name, "wb") as target_handle,
            pq.ParquetWriter(target_handle, schema, compression=_compression(file)) as writer,
        ):
            first = 0
            for index in range(file.num_row_groups):
                table = file.read_row_group(index)
                start, end = np.searchsorted(rows, [first, first + table.num_rows])
                if end > start:
                    new = columns.slice(start, end - start)
                    table = _with_values(table, rows[start:end] - first, new)
                writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
                first += table.num_rows


def _with_values(table: pa.Table, rows: npt.NDArray[np.int64], columns: pa.Table) -> pa.Table:
    take = np.arange(table.num_rows)
    take[rows] = table.num_rows + np.arange(len(rows))
    for name in columns.column_names:
        index = table.schema.get_field_index(name)
        kind = table.schema.field(index)
        both = [*table.column(index).chunks, *columns[name].cast(kind.type).chunks]
        table = table.set_column(index, kind, pa.chunked_array(both, kind.type).take(take))
    return table


def _compression(file: pq.ParquetFile) -> str:
    """Returns a file's compression, by the name that a writer accepts."""
    metadata = file.metadata
    codec = "snappy"
    if metadata.num_row_groups and metadata.num_columns:
        codec = metadata.row_group(0).column(0).compression.lower()
    return "none" if codec == "uncompressed" else codec


def _writable(file: pq.ParquetFile) -> pa.Schema:
    """Returns the schema with which a file is rewritten.

    It is the file's own except for INT96 timestamps, Spark's default: Arrow writes those before
    1970 in a way that it cannot read back (a negative time of day). They become timestamps in UTC,
    which are the same type to Spark, however a file stores them.
    """
    columns = [file.schema.column(index) for index in range(len(file.schema))]
    if all(column.physical_type != "INT96" for column in columns):
        return file.schema_arrow
    leaves = iter(columns)
    fields = [field.with_type(_without_int96(field.type, leaves)) for field in file.schema_arrow]
    return pa.schema(fields, file.schema_arrow.metadata)


def _without_int96(kind: pa.DataType, leaves: Iterator[Any]) -> pa.DataType:
    """Returns a type with UTC timestamps for INT96; consumes its columns from the leaves."""

    def mended(field: pa.Field) -> pa.Field:
        return field.with_type(_without_int96(field.type, leaves))

    if pa.types.is_struct(kind):
        return pa.struct([mended(kind.field(index)) for index in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(mended(kind.key_field), mended(kind.item_field))
    if pa.types.is_list(kind):
        return pa.list_(mended(kind.value_field))
    return pa.timestamp("us", "UTC") if next(leaves).physical_type == "INT96" else kind


def _refuse_legacy_times(file: pq.ParquetFile, path: str) -> None:
    """Raises JobError if INT96 timestamps use a calendar that rewriting would not preserve."""
    if b"org.apache.spark.legacyINT96" in (file.metadata.metadata or {}):
        raise JobError(
            f"{path!r} keeps timestamps in the calendar of Spark 2 and cannot be rewritten; score "
            "again with --overwrite and the Spark setting "
            "spark.sql.parquet.int96RebaseModeInWrite=CORRECTED"
        )


def _retryable(record: ChunkRecord) -> int:
    """Returns how many rows of a chunk, at most, have an error other than a missing text."""
    return record.errors - record.reasons.get(NULL_TEXT, 0)


def _cut_rounds(records: Iterable[ChunkRecord], rows: int) -> Iterator[list[ChunkRecord]]:
    """Yields consecutive records in rounds of at least `rows` rows to retry; the last has fewer."""
    held: list[ChunkRecord] = []
    for record in records:
        held.append(record)
        if sum(map(_retryable, held)) >= rows:
            yield held
            held = []
    if held:
        yield held


def _rows_with_error(path: str, text_column: str, error_column: str) -> Iterator[pa.Table]:
    """Yields number and text of the rows of a published file that have an error and a text."""
    fs, name = file_system(path)
    with fs.open(name, "rb") as handle:
        file = pq.ParquetFile(handle)
        first = 0
        for index in range(file.num_row_groups):
            error = file.read_row_group(index, columns=[error_column]).column(0)
            if error.null_count < len(error):
                _refuse_legacy_times(file, path)
                text = file.read_row_group(index, columns=[text_column]).column(0)
                wanted = pc.and_(pc.is_valid(error), pc.is_valid(text))
                rows = np.flatnonzero(wanted.to_numpy()) + first
                texts = text.filter(wanted).cast(pa.string())
                yield pa.table({ROW: pa.array(rows, pa.int64()), TEXT: texts})
            first += len(error)


def _numbered(index: int, table: pa.Table) -> pa.Table:
    numbers = pa.array(np.full(table.num_rows, index, np.int32))
    return table.add_column(0, STAGED.field(FILE), numbers)


def _regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the rows of all tables in tables of row group size."""
    held: list[pa.Table] = []
    rows = size = 0
    for whole in tables:
        for start in range(0, whole.num_rows, GROUP_ROWS):
            table = whole.slice(start, GROUP_ROWS)
            held.append(table)
            rows, size = rows + table.num_rows, size + table.nbytes
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                yield pa.concat_tables(held)
                held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held)


def _read(path: str, schema: pa.Schema) -> pa.Table:
    """Returns some columns of a Parquet file, with these types."""
    fs, name = file_system(path)
    with fs.open(name, "rb") as handle:
        table = pq.ParquetFile(handle).read(columns=schema.names)
    return table.select(schema.names).cast(schema)
