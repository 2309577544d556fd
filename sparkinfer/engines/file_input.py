"""An input of files, read by Arrow under every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import InputError
from sparkinfer.files.csv_rows import CsvFile
from sparkinfer.files.delta import find_delta
from sparkinfer.files.formats import CSV, PARQUET, is_compressed
from sparkinfer.files.json_rows import JsonFile
from sparkinfer.files.json_shapes import Shape, merged
from sparkinfer.files.listing import FoundFiles, InputFile, find_files
from sparkinfer.files.parquet import (
    TextSizes,
    at_once,
    parquet_schema,
    text_sizes,
    whole_number_bounds,
)
from sparkinfer.files.schema import unite
from sparkinfer.plan.inputs import given_input
from sparkinfer.plan.ports import InputTable
from sparkinfer.rows.copying import CsvRows, FileRows, JsonRows, ParquetRows
from sparkinfer.storage import join

T = TypeVar("T")


class OnEachFile(Protocol):
    """Calls a function with each name; see `FileAccess.on_each`."""

    def __call__(self, act: Callable[[str], T], names: Sequence[str], /) -> list[T]:
        """Returns the results in the order of the names."""


def one_after_the_other(act: Callable[[str], T], names: Sequence[str], /) -> list[T]:
    """Calls a function with each name, in this process; see `FileAccess.on_each`."""
    return [act(name) for name in names]


class FileInput:
    """Parquet, CSV or JSON at the configured paths; see `InputSource`.

    Args:
        config: names the paths.
        on_each: calls a function with the name of each file, where there is room for it.
    """

    def __init__(self, config: ScoringConfig, on_each: OnEachFile = one_after_the_other) -> None:
        self._config = config
        self._on_each = on_each

    def open(self) -> InputTable:
        """Returns what the files hold; all of a JSON file is read for it."""
        found = _find(self._config)
        names = [file.name for file in found.files]
        schemas, rows = self._schemas(found, names)
        united = unite(
            names, schemas, lambda name, column: whole_number_bounds(join(found.root, name), column)
        )
        _refuse_other_columns(found, [*united.schema.names, *united.refused])
        fine = {one.name.lower() for schema in schemas for one in schema if _has_nanoseconds(one)}
        fine_names = tuple(name for name in united.schema.names if name.lower() in fine)
        return InputTable(
            columns=united.columns,
            input_format=found.kind,
            schema=united.schema,
            refused=united.refused,
            files=_Files(self._config, found, rows, fine_names, self._on_each),
            notes=_notes(found),
        )

    def _schemas(self, found: FoundFiles, names: Sequence[str]) -> tuple[list[pa.Schema], FileRows]:
        """Returns the columns of each file, and what reads its rows."""
        paths = [join(found.root, name) for name in names]
        if found.kind == PARQUET:
            return at_once(parquet_schema, paths), ParquetRows()
        if found.kind == CSV:
            options = self._config.csv
            schemas = at_once(lambda path: CsvFile(path, options).schema(), paths)
            _refuse_stranger(paths, schemas)
            return schemas, CsvRows(options)
        shape = merged(self._on_each(_ShapeReader(found.root), names))
        schema = pa.schema([pa.field(key, one.type()) for key, one in shape.fields.items()])
        return [schema] * len(names), JsonRows(schema)


@dataclass(frozen=True)
class _Files:
    """The files of an open input; see `FileAccess`."""

    config: ScoringConfig
    found: FoundFiles
    rows: FileRows
    nanoseconds: tuple[str, ...]
    call_on_each: OnEachFile

    def now(self) -> tuple[InputFile, ...]:
        """Returns the files as they are now; see `FileAccess`."""
        return _find(self.config).files

    def text_sizes(self, column: str) -> TextSizes:
        """Returns how much text a column has: files' sizes if no more is known of it."""
        paths = [join(self.found.root, file.name) for file in self.found.files]
        if self.found.kind == PARQUET:
            return text_sizes(paths, column)
        sizes = [file.size for file in self.found.files]
        if self.config.csv.encoding is not None or any(map(is_compressed, paths)):
            return TextSizes(None, sum(sizes))
        return TextSizes(max(sizes), sum(sizes))

    def on_each(self, act: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Calls a function with each name; see `FileAccess`."""
        return self.call_on_each(act, names)


def _find(config: ScoringConfig) -> FoundFiles:
    given = given_input(config)
    if config.input_format in ("table", "query"):
        raise InputError(
            f"input {given!r} is a {config.input_format}, which only Spark can read; use "
            "--engine pandas_udf"
        )
    if config.input_version is not None:
        return _find_version(given, config.input_version)
    return find_files([given] if isinstance(given, str) else given, config.input_format)


def _find_version(given: str | tuple[str, ...], version: int) -> FoundFiles:
    if not isinstance(given, str):
        raise InputError(
            f"input_version={version} with {len(given)} paths: expected the folder of one Delta "
            "table; give only that"
        )
    return find_delta(given, version)


def _refuse_other_columns(found: FoundFiles, names: Sequence[str]) -> None:
    """Raises InputError if a log names other columns than there are in files and their names."""
    if found.columns is None:
        return
    there, wanted = ({name.lower(): name for name in some} for some in (names, found.columns))
    lines = [f"{wanted[name]!r} is in none of them" for name in wanted if name not in there]
    lines += [f"{there[name]!r} is not in the table" for name in there if name not in wanted]
    if lines:
        raise InputError(
            f"input {found.root!r}: the table's files have other columns than its log: "
            f"{'; '.join(lines)}; register it with Spark and give its name"
        )


def _notes(found: FoundFiles) -> tuple[str, ...]:
    if not found.left_out:
        return ()
    return (
        f"{len(found.left_out)} files in subfolders are not read, such as "
        f"{join(found.root, found.left_out[0])!r}: only subfolders named key=value are",
    )


@dataclass(frozen=True)
class _ShapeReader:
    """Reads what the values of JSON files are; sent with every task."""

    root: str

    def __call__(self, name: str) -> Shape:
        return JsonFile(join(self.root, name)).shape()


def _refuse_stranger(paths: Sequence[str], schemas: Sequence[pa.Schema]) -> None:
    """Raises InputError for a CSV file that has no column of the first one: rows without a header.

    Or with another delimiter. Its first row would be taken for names, and be lost.
    """
    known = {name.lower() for name in schemas[0].names}
    for path, schema in zip(paths, schemas, strict=True):
        if known.isdisjoint(name.lower() for name in schema.names):
            raise InputError(
                f"input file {path!r} has none of the columns of {paths[0]!r}, but {schema.names} "
                "in its first row; give it the same header and delimiter, or leave it out"
            )


def _has_nanoseconds(field: pa.Field) -> bool:
    return bool(pa.types.is_timestamp(field.type)) and field.type.unit == "ns"
