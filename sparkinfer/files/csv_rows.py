"""CSV as Arrow: all columns are strings, matched by the names in each file's header.

RFC 4180: line breaks and the delimiter within quotes, doubled quotes. An empty field is null and ""
is an empty string. A row that does not have the header's number of fields, or whose quotes do not
close, is an error that names file and line: its fields may be anything.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import IO, NoReturn

import pyarrow as pa

from sparkinfer.exceptions import InputError
from sparkinfer.files.formats import is_tab_separated
from sparkinfer.files.text import batched, open_text
from sparkinfer.option_groups import CsvConfig

csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters; Arrow's limit is this one

_ESCAPED_QUOTE, _ESCAPED_ESCAPE = "\ud800", "\ud801"
"""Stand for what is escaped while lines are cut into fields: half characters, which no decoded text
holds."""

Record = tuple[int, list[str | None], int]
"""The number of its first line, its fields, its characters in the file."""


class CsvFile:
    """One file.

    Args:
        path: of the file.
        options: how it is written.
    """

    def __init__(self, path: str, options: CsvConfig) -> None:
        self._path = path
        self._options = options
        self._delimiter = options.delimiter or ("\t" if is_tab_separated(path) else ",")
        self._nulls = {"", options.null}

    def schema(self) -> pa.Schema:
        """Returns the columns, by the header or the first row.

        Raises:
            InputError: it cannot be read, or has no header.
        """
        with open_text(self._path, self._options.encoding) as lines:
            names, _ = self._names_and_rows(lines)
        return pa.schema([pa.field(name, pa.string()) for name in names])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows.

        Args:
            columns: to read, as the header spells them.

        Raises:
            InputError: a row is not as the header says; the message names its line.
        """
        with open_text(self._path, self._options.encoding) as lines:
            names, records = self._names_and_rows(lines)
            places = [names.index(name) for name in columns]
            for rows in batched(self._checked(records, names)):
                fields = list(zip(*rows, strict=True))
                arrays = [pa.array(fields[place], pa.string()) for place in places]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def _names_and_rows(self, lines: IO[str]) -> tuple[list[str], Iterator[Record]]:
        records = self._records(lines)
        first = next(records, None)
        if first is None:
            self._fail(1, "there is no header line, nor any other")
        names = [f"_c{index}" for index in range(len(first[1]))]  # as Spark calls them
        if not self._options.header:
            return names, _with_first(first, records)
        return [name or other for name, other in zip(first[1], names, strict=True)], records

    def _records(self, lines: IO[str]) -> Iterator[Record]:
        """Yields the rows, the header too; empty lines are none."""
        taken: list[str] = []

        def feed() -> Iterator[str]:
            for line in lines:
                taken.append(self._prepared(line))
                yield taken[-1]

        reader = csv.reader(
            feed(),
            delimiter=self._delimiter,
            quotechar=self._options.quote or None,
            quoting=csv.QUOTE_MINIMAL if self._options.quote else csv.QUOTE_NONE,
            strict=True,
        )
        number = 1
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                self._fail(number, _reason(error))
            if fields is None:
                return
            if fields:
                yield number, self._values(fields, taken), sum(map(len, taken))
            number += len(taken)
            taken.clear()

    def _prepared(self, line: str) -> str:
        """Returns a line with escaped quotes replaced, so that no quote in it is ambiguous.

        Only a backslash (or whatever `csv.escape` is) before a quote or another one is an escape:
        so Spark writes them within quotes. Elsewhere it is a character like any other.
        """
        escape, quote = self._options.escape, self._options.quote
        if not escape or not quote or escape == quote:
            return line
        pairs = f"{re.escape(escape)}({re.escape(escape)}|{re.escape(quote)})"
        return re.sub(
            pairs, lambda pair: _ESCAPED_QUOTE if pair[1] == quote else _ESCAPED_ESCAPE, line
        )

    def _values(self, fields: list[str], taken: Sequence[str]) -> list[str | None]:
        values: list[str | None] = list(fields)
        escape, quote = self._options.escape or "", self._options.quote
        is_doubled = bool(escape) and any(_ESCAPED_ESCAPE in field for field in fields)
        if is_doubled or not self._nulls.isdisjoint(fields):
            for place, is_quoted in enumerate(self._quoted(fields, taken)):
                count = 1 if is_quoted else 2
                value = fields[place].replace(_ESCAPED_ESCAPE, escape * count)
                values[place] = None if not is_quoted and value in self._nulls else value
        if escape:
            values = [value and value.replace(_ESCAPED_QUOTE, quote) for value in values]
        return values

    def _quoted(self, fields: Sequence[str], taken: Sequence[str]) -> list[bool]:
        """Returns for each field of a row whether it is in quotes; the reader does not say."""
        if not self._options.quote:
            return [False] * len(fields)
        raw = self._field.findall("".join(taken))[: len(fields)]
        return [one.startswith(self._options.quote) for one in raw]

    @cached_property
    def _field(self) -> re.Pattern[str]:
        quote, delimiter = re.escape(self._options.quote), re.escape(self._delimiter)
        within = f"{quote}[^{quote}]*(?:{quote}{quote}[^{quote}]*)*{quote}"
        return re.compile(rf"({within}|[^{delimiter}\r\n]*)(?:{delimiter}|\r\n|\n|\r|\Z)")

    def _checked(
        self, records: Iterable[Record], names: Sequence[str]
    ) -> Iterator[tuple[list[str | None], int]]:
        for line, fields, characters in records:
            if len(fields) != len(names):
                self._fail(
                    line,
                    f"fields: {len(fields)}, in the header: {len(names)} "
                    f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})",
                )
            yield fields, characters

    def _fail(self, line: int, reason: str) -> NoReturn:
        raise InputError(
            f"input file {self._path!r}, line {line}: {reason}; repair it, or say how the file is "
            "written: csv.delimiter, csv.quote, csv.escape, csv.header"
        )


def _reason(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote that opens in this row is never closed"
    if "expected after" in str(error):
        return "there is text between a closing quote and the delimiter"
    return str(error)


def _with_first(first: Record, records: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from records
