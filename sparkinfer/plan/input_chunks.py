"""The input as it is read: in place or from copies, cut into chunks."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from itertools import islice

import pyarrow as pa

from sparkinfer.exceptions import RowConservationError
from sparkinfer.files.formats import PARQUET
from sparkinfer.logs import get_logger
from sparkinfer.plan.chunks import DEFAULT_LIMITS, Chunk, ChunkLimits, RowGroups, cut_chunks
from sparkinfer.plan.copies import should_copy
from sparkinfer.plan.gathered import OnEach, gather
from sparkinfer.plan.ports import FileAccess, TableAccess
from sparkinfer.plan.prelude import Prelude
from sparkinfer.plan.snapshot import read_row_groups
from sparkinfer.plan.table_state import Mark
from sparkinfer.rows.copying import Copy, FileCopier, ParquetRows
from sparkinfer.rows.nanoseconds import CutCounter
from sparkinfer.rows.reading import COPIES, ChunkReader, InputFolders
from sparkinfer.storage import join, names_in, remove

NO_LIMIT = 1 << 62

logger = get_logger(__name__)


class InputChunks:
    """Cuts the input of a run into chunks.

    Args:
        prelude: of the run.
        copies: folder for copies of the input, or of some of its files.

    Attributes:
        folders: where the files to read are.
        notes: what the user should know of how the input is read.
    """

    def __init__(self, prelude: Prelude, copies: str) -> None:
        self._prelude = prelude
        self._copies = copies
        files = prelude.table.files
        self._root = files.found.root if files is not None else copies
        self.folders = InputFolders(self._root, copies=copies)
        self.notes: list[str] = []
        for note in prelude.table.notes:
            self._note(note)

    @property
    def limits(self) -> ChunkLimits:
        """Maximum size of a chunk."""
        target_rows = self._prelude.config.chunks.target_rows
        if target_rows is None:
            return DEFAULT_LIMITS[self._prelude.workers.device_type]
        return ChunkLimits(target_rows, NO_LIMIT)

    def cut_files(
        self, names: Sequence[str], first_number: int
    ) -> tuple[tuple[str, ...], tuple[Chunk, ...]]:
        """Returns the names of the files to read and their chunks; makes copies where needed.

        Args:
            names: of the input's files.
            first_number: number of the first chunk.

        Raises:
            InputError: a file is not readable.
            JobError: a copy could not be made, or its row count differs.
        """
        is_parquet = self._prelude.table.input_format == PARQUET
        if is_parquet:
            self._note_nanoseconds(names)
            row_groups = self._row_groups(names)
        else:
            copied = self._copy_files(names)
            row_groups = self._row_groups([copy for name in names for copy in copied[name]])
        if self._prelude.config.dedupe:
            columns = self._prelude.columns.stored
            row_groups = self._gathered(row_groups, columns, self._files.on_each)
        elif is_parquet:
            row_groups = self._copy_large(row_groups)
        return self._cut(row_groups, first_number)

    def cut_table(
        self, table: TableAccess, columns: Sequence[str], beyond: Mark | None, first_number: int
    ) -> tuple[tuple[str, ...], tuple[Chunk, ...]]:
        """Returns the same for a copy of what Spark reads.

        Args:
            table: what to copy.
            columns: to copy.
            beyond: only rows beyond this mark; None: all.
            first_number: number of the first chunk.

        Raises:
            JobError: the copy could not be made.
        """
        attempt = uuid.uuid4().hex
        folder = join(self._copies, attempt)
        table.copy(folder, self.limits.rows, columns, beyond)
        names = [name for name in names_in(folder) if not name.startswith(("_", "."))]
        row_groups = self._row_groups([f"{attempt}/{name}" for name in names])
        if self._prelude.config.dedupe:
            row_groups = self._gathered(row_groups, columns, table.on_each)
        return self._cut(row_groups, first_number)

    def _gathered(
        self, files: Sequence[RowGroups], columns: Sequence[str], on_each: OnEach
    ) -> list[RowGroups]:
        """Returns the files of a copy in which equal inputs stand together; see `gather`.

        Of an input without rows there is none.
        """
        if not any(map(_rows, files)):
            return list(files)
        schema, inputs = self._prelude.table.schema, self._prelude.columns.inputs.names
        reader = ChunkReader(self.folders, pa.schema([schema.field(name) for name in columns]))
        made = gather(files, reader, inputs, self.limits, on_each)
        if self._root == self._copies or files[0].path.startswith(COPIES):  # a copy, too
            remove(join(self._copies, files[0].path.removeprefix(COPIES).split("/")[0]))
        self.notes.append(f"dedupe: {made.inputs:,} different inputs in {made.rows:,} rows")
        return self._row_groups(made.names)

    def _cut(
        self, row_groups: Sequence[RowGroups], first_number: int
    ) -> tuple[tuple[str, ...], tuple[Chunk, ...]]:
        read = tuple(file.path for file in row_groups)
        return read, cut_chunks(row_groups, self.limits, first_number)

    def _copy_files(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Copies some files and returns the names of each one's copies."""
        attempt = uuid.uuid4().hex
        is_parquet = self._prelude.table.input_format == PARQUET
        rows = ParquetRows() if is_parquet else self._files.rows
        columns = self._prelude.columns.read
        copier = FileCopier(self._root, join(self._copies, attempt), columns, rows)
        copied: list[Copy] = self._files.on_each(copier, names)
        for name, copy in zip(names, copied, strict=True):
            for remark in copy.remarks:
                self._note(f"input file {join(self._root, name)!r}: {remark}")
        return {
            name: [f"{COPIES}{attempt}/{made}" for made in copy.names]
            for name, copy in zip(names, copied, strict=True)
        }

    def _row_groups(self, names: Sequence[str]) -> list[RowGroups]:
        columns = self._prelude.columns
        return read_row_groups(self.folders, names, columns.inputs.names, columns.read.names)

    def _note_nanoseconds(self, names: Sequence[str]) -> None:
        """Notes how many timestamps are cut to microseconds; reads only columns that have any."""
        read = set(self._prelude.columns.read.names)
        columns = tuple(name for name in self._files.nanoseconds if name in read)
        if not columns:
            return
        counts = self._files.on_each(CutCounter(self._root, columns), names)
        for column in columns:
            cut = sum(count[column] for count in counts)
            if cut:
                self._note(f"column {column!r}: {cut} timestamps are cut to microseconds")

    def _note(self, note: str) -> None:
        logger.warning(note)
        self.notes.append(note)

    @property
    def _files(self) -> FileAccess:
        files = self._prelude.table.files
        if files is None:
            raise AssertionError("a table has no files")
        return files

    def _copy_large(self, files: Sequence[RowGroups]) -> list[RowGroups]:
        """Returns the files to read: copies where a file's row groups are too large."""
        workers = self._prelude.workers
        large = [file.path for file in files if should_copy(file, self.limits, workers)]
        if not large:
            return list(files)
        return self._in_place_of(files, self._copy_files(large))

    def _in_place_of(
        self, files: Sequence[RowGroups], copies: Mapping[str, Sequence[str]]
    ) -> list[RowGroups]:
        """Returns the files, with those that have copies replaced by their copies.

        Raises:
            RowConservationError: copies have more or fewer rows than their file.
        """
        named = [copy for file in files for copy in copies.get(file.path, ())]
        found = iter(self._row_groups(named))
        read: list[RowGroups] = []
        for file in files:
            in_copies = list(islice(found, len(copies.get(file.path, ()))))
            if in_copies and sum(map(_rows, in_copies)) != _rows(file):
                raise RowConservationError(
                    f"input file {join(self._root, file.path)!r} has {_rows(file)} rows and its "
                    f"copy {sum(map(_rows, in_copies))}; run again"
                )
            read += in_copies or [file]
        return read


def _rows(file: RowGroups) -> int:
    return sum(file.rows)
