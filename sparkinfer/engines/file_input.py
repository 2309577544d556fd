"""An input of files, read by Arrow under every engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa

from sparkinfer.config import ScoringConfig
from sparkinfer.exceptions import InputError
from sparkinfer.files.csv_rows import CsvFile
from sparkinfer.files.formats import CSV, PARQUET
from sparkinfer.files.json_rows import JsonFile
from sparkinfer.files.json_shapes import Shape, merged
from sparkinfer.files.listing import FoundFiles, InputFile, find_files
from sparkinfer.files.parquet import parquet_schema, whole_number_bounds
from sparkinfer.files.schema import unite
from sparkinfer.plan.ports import InputTable
from sparkinfer.plan.snapshot import FOOTERS_AT_ONCE
from sparkinfer.rows.copying import CsvRows, FileRows, JsonRows, ParquetRows
from sparkinfer.storage import join

T = TypeVar("T")

logger = logging.getLogger(__name__)


class OnEachFile(Protocol):
    """Calls a function with each name; see `InputSource.on_each_file`."""

    def __call__(self, act: Callable[[str], T], names: Sequence[str], /) -> list[T]:
        """Returns the results in the order of the names."""


def one_after_the_other(act: Callable[[str], T], names: Sequence[str], /) -> list[T]:
    """Calls a function with each name, in this process; see `InputSource.on_each_file`."""
    return [act(name) for name in names]


class FileInput:
    """Parquet, CSV or JSON at the configured paths; see `InputSource`.

    Args:
        config: names the paths.
        on_each_file: calls a function with the name of each file, where there is room for it.
    """

    def __init__(
        self, config: ScoringConfig, on_each_file: OnEachFile = one_after_the_other
    ) -> None:
        self._config = config
        self._on_each_file = on_each_file

    def open(self) -> InputTable:
        """Returns what the files hold; all of a JSON file is read for it."""
        found = self._find()
        if found.left_out:
            logger.warning(
                "%d files in subfolders are not read, such as %r: only those named key=value are",
                len(found.left_out),
                join(found.root, found.left_out[0]),
            )
        names = [file.name for file in found.files]
        schemas, rows = self._schemas(found, names)
        united = unite(
            names, schemas, lambda name, column: whole_number_bounds(join(found.root, name), column)
        )
        fine = {one.name.lower() for schema in schemas for one in schema if _has_nanoseconds(one)}
        return InputTable(
            columns=united.columns,
            input_format=found.kind,
            schema=united.schema,
            refused=united.refused,
            files=found,
            rows=rows,
            nanoseconds=tuple(name for name in united.schema.names if name.lower() in fine),
        )

    def files(self) -> tuple[InputFile, ...]:
        """Returns the files as they are now; see `InputSource`."""
        return self._find().files

    def copy(self, folder: str, rows_per_file: int, columns: Sequence[str]) -> None:
        """Not called: files are read by Arrow; see `InputSource`."""
        raise AssertionError("files are copied one by one")

    def on_each_file(self, act: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Calls a function with each name; see `InputSource`."""
        return self._on_each_file(act, names)

    def _find(self) -> FoundFiles:
        given = self._config.input
        if self._config.input_format in ("table", "query"):
            raise InputError(
                f"input {given!r} is a {self._config.input_format}, which only Spark can read; use "
                "--engine pandas_udf"
            )
        return find_files(
            [given] if isinstance(given, str) else given or [], self._config.input_format
        )

    def _schemas(self, found: FoundFiles, names: Sequence[str]) -> tuple[list[pa.Schema], FileRows]:
        """Returns the columns of each file, and what reads its rows."""
        paths = [join(found.root, name) for name in names]
        if found.kind == PARQUET:
            return _at_once(parquet_schema, paths), ParquetRows()
        if found.kind == CSV:
            options = self._config.csv
            return _at_once(lambda path: CsvFile(path, options).schema(), paths), CsvRows(options)
        shape = merged(self.on_each_file(_ShapeReader(found.root), names))
        schema = pa.schema([pa.field(key, one.type()) for key, one in shape.fields.items()])
        return [schema] * len(names), JsonRows(schema)


@dataclass(frozen=True)
class _ShapeReader:
    """Reads what the values of JSON files are; sent with every task."""

    root: str

    def __call__(self, name: str) -> Shape:
        return JsonFile(join(self.root, name)).shape()


def _has_nanoseconds(field: pa.Field) -> bool:
    return bool(pa.types.is_timestamp(field.type)) and field.type.unit == "ns"


def _at_once(read: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return list(pool.map(read, paths))
