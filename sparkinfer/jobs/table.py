"""Publishes a finished output to a table, once.

A plain table cannot tell whose rows it has, so what is done is noted beside the output: before an
append, how many rows the table has, and afterwards which files are in it. After a crash between the
two, the table's rows tell whether the append took place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import ConfigError, JobError, OutputError
from sparkinfer.jobs.hold import Hold
from sparkinfer.jobs.manifest import Manifest
from sparkinfer.jobs.records import ChunkRecord
from sparkinfer.plan.inputs import looks_like_table
from sparkinfer.plan.ports import TableTarget
from sparkinfer.plan.prelude import Prelude
from sparkinfer.sinks.vectors.delivery import receipt_of
from sparkinfer.storage import WORK_FOLDER, join, make_folder, names_in, read_text, replace_text

NOTES_FOLDER = "tables"


@dataclass(frozen=True)
class _Published:
    """What of a run is in a table.

    Attributes:
        done: rows of each chunk that is in it, by what tells its files from others.
        begun: the same of what was about to be appended; None: nothing was.
        rows_before: of the table, before that.
    """

    done: Mapping[str, int]
    begun: Mapping[str, int] | None = None
    rows_before: int = 0


def check_table(prelude: Prelude) -> None:
    """Raises UsageError unless the table, if there is to be one, can be written."""
    config, columns = prelude.config, prelude.asked_columns.output
    name = config.table.name
    if name is None:
        return
    if not looks_like_table(name):
        raise ConfigError(
            f"table.name={name!r}: expected table, schema.table or catalog.schema.table"
        )
    there = _target(prelude).columns(name)
    if there is not None and config.table.mode == "append":
        _refuse_other_columns(name, _target(prelude).types_of(columns), there)


def publish_table(prelude: Prelude, manifest: Manifest, hold: Hold) -> None:
    """Has the rows of a finished run in the table, unless they are.

    Raises:
        JobError: the table cannot be written, or it is not clear what is in it.
    """
    config = prelude.config
    name = config.table.name
    if name is None:
        return
    notes = _Notes(hold.output.path, manifest.run, name)
    publishing = _Publishing(config, _target(prelude), notes, prelude.asked_columns.output)
    publishing.publish(list(hold.ledger.standing()), hold.output.path)


class _Publishing:
    """The way of one run into a table."""

    def __init__(
        self, config: ScoringConfig, target: TableTarget, notes: _Notes, columns: pa.Schema
    ) -> None:
        self._name = str(config.table.name)
        self._appends = config.table.mode == "append"
        self._target = target
        self._notes = notes
        self._columns = columns

    def publish(self, records: Sequence[ChunkRecord], output: str) -> None:
        """Writes what is not in the table yet."""
        wanted = {receipt_of(record.publication): record.rows for record in records}
        paths = {
            receipt_of(record.publication): [join(output, name) for name in record.files]
            for record in records
        }
        known = self._settled(self._notes.read())
        if known.done == wanted:
            return
        if self._appends:
            self._refuse_changed(known.done, wanted)
        new = [key for key in wanted if not self._appends or key not in known.done]
        rows = {key: wanted[key] for key in new}
        if self._appends:
            before = self._target.count(self._name)
            self._notes.write(_Published(known.done, rows, before))
        files = [path for key in new for path in paths[key]]
        self._target.write(
            self._name, files, self._columns, "append" if self._appends else "overwrite"
        )
        self._notes.write(_Published(wanted))

    def _settled(self, known: _Published) -> _Published:
        """Returns what is in the table, after an append of which the end is not known."""
        if known.begun is None or not self._appends:
            return _Published(known.done)
        now, more = self._target.count(self._name), sum(known.begun.values())
        if now == known.rows_before and more:
            return _Published(known.done)
        if now == known.rows_before + more:
            settled = _Published({**known.done, **known.begun})
            self._notes.write(settled)
            return settled
        raise JobError(
            f"table {self._name!r}: an append of {more} rows was interrupted, and the table, which "
            f"had {known.rows_before} rows, has {now}: others write to it, or only part of them "
            "arrived. Look at it, and rewrite it with --set table.mode=replace, or to another table"
        )

    def _refuse_changed(self, done: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        if set(done) - set(wanted):
            raise JobError(
                f"table {self._name!r}: rows that were appended have been scored again since, and "
                "an append would have them twice; rewrite it with --set table.mode=replace"
            )


class _Notes:
    """What is noted beside an output of a table."""

    def __init__(self, output: str, run: str, name: str) -> None:
        self._folder = join(output, WORK_FOLDER, NOTES_FOLDER)
        which = hashlib.sha256(name.encode()).hexdigest()[:16]
        self._file = f"{run}-{which}.json"

    def read(self) -> _Published:
        """Returns what is in the table as far as it is noted."""
        if self._file not in names_in(self._folder):
            return _Published({})
        return _Published(**json.loads(read_text(join(self._folder, self._file)) or "{}"))

    def write(self, published: _Published) -> None:
        """Notes what is in the table."""
        make_folder(self._folder)
        replace_text(join(self._folder, self._file), json.dumps(vars(published)))


def _target(prelude: Prelude) -> TableTarget:
    if prelude.tables is None:
        raise ConfigError(
            f"table.name={prelude.config.table.name!r} with engine={prelude.config.engine!r}: "
            "tables are written by Spark; use --engine pandas_udf or horovod"
        )
    return prelude.tables


def _refuse_other_columns(name: str, wanted: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Raises OutputError for a table with other columns, in whatever order."""
    given = {column.lower(): kind for column, kind in there.items()}
    lines = [
        f"{column} is {given.get(column.lower(), 'not there')}, expected {kind}"
        for column, kind in wanted.items()
        if given.get(column.lower()) != kind
    ]
    lines += [f"{one} is not in the output" for one in there if one.lower() not in _low(wanted)]
    if lines:
        raise OutputError(
            f"table {name!r} has other columns than the output: {'; '.join(lines)}; name another "
            "table, choose columns with --carry-cols, or give --set table.mode=replace"
        )


def _low(names: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in names}
