"""The input as it is read: in place or from copies, cut into chunks."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from itertools import islice

from sparkinfer.exceptions import RowConservationError
from sparkinfer.plan.chunks import DEFAULT_LIMITS, Chunk, ChunkLimits, RowGroups, cut_chunks
from sparkinfer.plan.copies import should_copy
from sparkinfer.plan.prelude import Prelude
from sparkinfer.plan.snapshot import InputFile, input_root, list_files, read_row_groups
from sparkinfer.rows.copying import FileCopier
from sparkinfer.rows.reading import COPIES, InputFolders
from sparkinfer.storage import join

NO_LIMIT = 1 << 62


class InputChunks:
    """Cuts the input of a run into chunks.

    Args:
        prelude: of the run.
        copies: folder for copies of the input, or of some of its files.

    Attributes:
        folders: where the files to read are.
    """

    def __init__(self, prelude: Prelude, copies: str) -> None:
        self._prelude = prelude
        self._copies = copies
        self._path = prelude.table.path
        self._root = input_root(self._path) if self._path is not None else ""
        self._is_parquet = prelude.table.input_format == "parquet"
        self.folders = InputFolders(self._root if self._is_parquet else copies, copies=copies)

    def files(self) -> tuple[InputFile, ...]:
        """Returns the current files of the input; none for a table or a DataFrame."""
        return list_files(self._path) if self._path is not None else ()

    @property
    def limits(self) -> ChunkLimits:
        """Maximum size of a chunk."""
        target_rows = self._prelude.config.chunks.target_rows
        if target_rows is None:
            return DEFAULT_LIMITS[self._prelude.workers.device_type]
        return ChunkLimits(target_rows, NO_LIMIT)

    def cut(
        self, files: Sequence[InputFile], first_number: int
    ) -> tuple[tuple[str, ...], tuple[Chunk, ...]]:
        """Returns the names of the files to read and their chunks; makes copies where needed.

        Args:
            files: of the input; none for a table or a DataFrame.
            first_number: number of the first chunk.

        Raises:
            InputError: a file is not readable.
            JobError: a copy could not be made, or its row count differs.
        """
        names = [file.name for file in files]
        if self._is_parquet:
            row_groups = self._copy_large(self._row_groups(names))
        else:
            row_groups = self._row_groups(self._copy_all(names))
        read = tuple(file.path for file in row_groups)
        return read, cut_chunks(row_groups, self.limits, first_number)

    def _copy_all(self, names: Sequence[str]) -> list[str]:
        """Returns the names of the Parquet copies of an input's files, or of a table."""
        attempt = uuid.uuid4().hex
        folder = join(self._copies, attempt)
        paths = [join(self._root, name) for name in names]
        self._prelude.source.copy(folder, self.limits.rows, paths)
        return [f"{attempt}/{file.name}" for file in list_files(folder)]

    def _row_groups(self, names: Sequence[str]) -> list[RowGroups]:
        columns = self._prelude.columns
        return read_row_groups(self.folders, names, columns.inputs.names, columns.read.names)

    def _copy_large(self, files: Sequence[RowGroups]) -> list[RowGroups]:
        """Returns the files to read: copies where a file's row groups are too large."""
        kind = self._prelude.workers.device_type
        large = [file.path for file in files if should_copy(file, self.limits, kind)]
        if not large:
            return list(files)
        attempt = uuid.uuid4().hex
        columns = tuple(self._prelude.columns.read.names)
        copier = FileCopier(self._root, join(self._copies, attempt), columns)
        copied = self._prelude.source.copy_files(copier, large)
        names = {
            name: [f"{COPIES}{attempt}/{copy}" for copy in copies]
            for name, copies in copied.items()
        }
        return self._in_place_of(files, names)

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
