"""Whether the input is still what an output was made from, and what has been added to it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Protocol

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, ResumeError
from sparkinfer.files.listing import InputFile
from sparkinfer.jobs.clock import utc_now
from sparkinfer.jobs.differences import refuse_changed_table, refuse_other_input
from sparkinfer.jobs.manifest import Manifest
from sparkinfer.plan.coverage import coverage_problem
from sparkinfer.plan.input_chunks import InputChunks
from sparkinfer.plan.ports import FileAccess, TableAccess
from sparkinfer.plan.prelude import Prelude
from sparkinfer.plan.snapshot import read_row_groups
from sparkinfer.plan.table_state import Mark
from sparkinfer.storage import exists


class JobInput(Protocol):
    """The input of a run, compared with what its manifest says."""

    def is_larger(self, manifest: Manifest, done: Container[int]) -> bool:
        """Returns whether there is more than the manifest says, which is then to be scored too.

        Args:
            manifest: of the output.
            done: numbers of the chunks that are done.

        Raises:
            ResumeError: the input has changed in another way.
        """

    def extend(self, manifest: Manifest) -> Manifest:
        """Returns the manifest with the chunks of what is not in it; makes copies where needed.

        Raises:
            InputError: a file is not readable.
            JobError: a copy could not be made.
        """

    def refuse_uncovered(self, manifest: Manifest, done: Container[int]) -> None:
        """Raises ResumeError unless the chunks hold each row of what is read once.

        Args:
            manifest: of the output.
            done: numbers of the chunks that are done; files of which nothing is left to be read may
                be gone.
        """

    def check_at_end(self, manifest: Manifest) -> None:
        """Raises ResumeError if what was read in place has changed meanwhile."""


def job_input(prelude: Prelude, chunks: InputChunks) -> JobInput:
    """Returns the input of a run.

    Args:
        prelude: of the run.
        chunks: cuts the input.

    Raises:
        ConfigError: `incremental` does not fit the input.
    """
    config, table = prelude.config, prelude.table
    if table.files is not None:
        if config.incremental_col is not None:
            raise ConfigError(
                f"incremental_col={config.incremental_col!r} with {config.input!r}: new rows in "
                "files are recognised by new files; leave the option out"
            )
        return _Files(config, table.files, chunks)
    if table.table is None:
        raise AssertionError("an input is files or a table")
    if config.incremental and config.incremental_col is None:
        raise ConfigError(
            f"incremental=true with {config.input or 'df'!r}, a {table.input_format}: give the "
            "column whose values grow with each new row, --incremental-col COLUMN, or score it "
            "from scratch with --overwrite"
        )
    if config.incremental_col is not None and config.incremental_col not in table.columns:
        raise ConfigError(
            f"incremental_col={config.incremental_col!r}: no such column; the input has "
            f"{', '.join(table.columns)}"
        )
    return _Table(prelude, table.table, chunks)


def needed_files(manifest: Manifest, done: Container[int]) -> set[str]:
    """Returns the names of the files that chunks are still to be read from."""
    open_chunks = (chunk for chunk in manifest.chunks if chunk.number not in done)
    return {piece.path for chunk in open_chunks for piece in chunk.pieces}


class _Input:
    """What inputs of both kinds have in common."""

    def __init__(self, output: str, chunks: InputChunks) -> None:
        self._output = output
        self._chunks = chunks

    def refuse_uncovered(self, manifest: Manifest, done: Container[int]) -> None:
        """Raises ResumeError unless the chunks hold each row once; see `JobInput`."""
        folders, needed = self._chunks.folders, needed_files(manifest, done)
        there = [n for n in manifest.read_files if n in needed or exists(folders.find(n))]
        problem = coverage_problem(manifest.chunks, read_row_groups(folders, there, [], []))
        if problem is not None:
            raise ResumeError(
                f"the manifest of output {self._output!r} does not fit its input: {problem}; "
                "restore it from a copy, or give --overwrite to score everything again"
            )


class _Files(_Input):
    """An input of files: read in place, or copied one by one; see `JobInput`."""

    def __init__(self, config: ScoringConfig, files: FileAccess, chunks: InputChunks) -> None:
        super().__init__(str(config.output), chunks)
        self._config = config
        self._files = files
        self._now = files.found.files

    def is_larger(self, manifest: Manifest, done: Container[int]) -> bool:
        """Returns whether there are new files; see `JobInput`."""
        self._refuse_changes(manifest, self._now, self._config.incremental, done)
        return bool(self._added(manifest))

    def extend(self, manifest: Manifest) -> Manifest:
        """Returns the manifest with the chunks of new files; see `JobInput`."""
        added = [file.name for file in self._added(manifest)]
        read_files, chunks = self._chunks.cut_files(added, first_number=len(manifest.chunks))
        return replace(
            manifest,
            input_files=(*manifest.input_files, *self._added(manifest)),
            read_files=(*manifest.read_files, *read_files),
            chunks=(*manifest.chunks, *chunks),
        )

    def check_at_end(self, manifest: Manifest) -> None:
        """Raises ResumeError if a file has changed; see `JobInput`."""
        done = range(len(manifest.chunks)) if self._config.incremental else ()
        self._refuse_changes(manifest, self._files.now(), True, done)

    def _refuse_changes(
        self,
        manifest: Manifest,
        now: Sequence[InputFile],
        may_grow: bool,
        done: Container[int],
    ) -> None:
        needed = needed_files(manifest, done)
        refuse_other_input(self._output, manifest.input_files, now, may_grow, needed)

    def _added(self, manifest: Manifest) -> list[InputFile]:
        known = {file.name for file in manifest.input_files}
        return [file for file in self._now if file.name not in known]


class _Table(_Input):
    """What Spark reads, copied when the run began; see `JobInput`."""

    def __init__(self, prelude: Prelude, table: TableAccess, chunks: InputChunks) -> None:
        super().__init__(str(prelude.config.output), chunks)
        self._config = prelude.config
        self._table = table
        self._columns = prelude.asked_columns.stored

    def is_larger(self, manifest: Manifest, done: Container[int]) -> bool:
        """Returns whether there are rows beyond the mark of those that are done; see `JobInput`.

        Reads the table once if it has no version or another one, and once more if it has changed
        and new rows may be added.
        """
        before = manifest.table
        if before is None or not manifest.chunks:
            return False
        if before.version is not None and before.version == self._table.version():
            return False
        now = self._table.state(self._columns, until=None)
        if now.is_same(before):
            return False
        output = str(self._config.output)
        what = repr(self._config.input) if self._config.input else "the DataFrame"
        column = self._config.incremental_col
        if not self._config.incremental or column is None:
            refuse_changed_table(output, what, before, now)
        if before.rows:
            mark = self._mark(manifest)
            old = self._table.state(self._columns, until=mark)
            if mark is None or not old.is_same(before):
                refuse_changed_table(output, what, before, old, mark)
        return True

    def extend(self, manifest: Manifest) -> Manifest:
        """Returns the manifest with the chunks of rows that are now copied; see `JobInput`."""
        beyond = self._mark(manifest) if manifest.table and manifest.table.rows else None
        taken, version = utc_now(), self._table.version()
        column = self._config.incremental_col
        copied = list(dict.fromkeys([*self._columns, *([column] if column else [])]))
        read_files, chunks = self._chunks.cut_table(
            self._table, copied, beyond, first_number=len(manifest.chunks)
        )
        state = self._table.state_of_copy(self._paths(read_files), self._columns)
        state = replace(state, taken=taken)
        if version is not None and version == self._table.version():
            state = replace(state, version=version)
        return replace(
            manifest,
            table=manifest.table.plus(state) if manifest.table else state,
            read_files=(*manifest.read_files, *read_files),
            chunks=(*manifest.chunks, *chunks),
        )

    def check_at_end(self, manifest: Manifest) -> None:
        """Does nothing: a copy does not change; see `JobInput`."""

    def _mark(self, manifest: Manifest) -> Mark | None:
        column = self._config.incremental_col
        return self._table.mark(self._paths(manifest.read_files), column) if column else None

    def _paths(self, names: tuple[str, ...]) -> list[str]:
        return [self._chunks.folders.find(name) for name in names]
