"""JSON as Arrow: one object per line, or one array of objects in a file.

A line that is no object is an error that names file and line. An empty line is no row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from math import isinf
from typing import IO, Any, NoReturn

import pyarrow as pa

from sparkinfer.exceptions import InputError
from sparkinfer.files.json_shapes import Beyond, Shape, to_array
from sparkinfer.files.text import batched, open_text

_WHITESPACE = re.compile(r"[ \t\r\n]*")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")

Row = tuple[dict[str, Any], int]
"""An object and its characters in the file."""


class _TwiceError(ValueError):
    """A key appears twice in one object."""


class JsonFile:
    """One file.

    Args:
        path: of the file.

    Attributes:
        halves: strings so far with half a character (an escaped surrogate without its partner),
            which UTF-8 cannot hold; U+FFFD takes its place.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.halves = 0
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_float=_fraction)

    def shape(self) -> Shape:
        """Returns what the values of all rows are; reads the whole file.

        Raises:
            InputError: it cannot be read, or a row is no JSON object.
        """
        shape = Shape(kinds={"dict"})
        fields = shape.fields  # without the limit on the fields of an object
        with open_text(self._path) as lines:
            for row, _ in self._rows(lines):
                for key, value in row.items():
                    fields.setdefault(key, Shape()).add(value)
        return shape

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yields the rows.

        Args:
            schema: columns to read, with types that hold every value; see `Shape.type`.
        """
        with open_text(self._path) as lines:
            for rows in batched(self._rows(lines)):
                arrays = [
                    to_array([row.get(field.name) for row in rows], field.type) for field in schema
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _rows(self, lines: IO[str]) -> Iterator[Row]:
        is_first = True
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if is_first and line.lstrip().startswith("["):
                yield from self._elements(number, line, lines)
                return
            is_first = False
            yield self._parsed(line, number), len(line)

    def _parsed(self, line: str, number: int) -> dict[str, Any]:
        try:
            value = self._whole(self._decoder.decode(line))
        except json.JSONDecodeError as error:
            self._fail(number, f"it is no JSON object ({error.msg} at character {error.colno})")
        except (RecursionError, ValueError) as error:
            self._fail(number, f"it cannot be read ({error})")
        if not isinstance(value, dict):
            self._fail(number, _no_object(value))
        row: dict[str, Any] = value
        return row

    def _elements(self, first: int, line: str, lines: IO[str]) -> Iterator[Row]:
        """Yields the objects of one array; holds the file's text in memory."""
        text = "".join(chain([line], lines))

        def fail(reason: str) -> NoReturn:
            self._fail(first + text.count("\n", 0, place), reason)

        place = _after_space(text, text.index("[") + 1)
        is_first = True
        while text[place : place + 1] != "]":
            if not is_first:
                if text[place : place + 1] != ",":
                    fail("an array's element is followed by neither ',' nor ']'")
                place = _after_space(text, place + 1)
            try:
                value, end = self._decoder.raw_decode(text, place)
                value = self._whole(value)
            except (ValueError, RecursionError) as error:
                fail(f"it cannot be read ({error})")
            if not isinstance(value, dict):
                fail(_no_object(value))
            yield value, end - place
            place, is_first = _after_space(text, end), False
        if text[place + 1 :].strip():
            fail("something follows the end of the array")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _TwiceError(f"key {twice!r} appears twice in one object")
        return made

    def _whole(self, value: Any) -> Any:
        """Returns a value whose strings UTF-8 can hold."""
        if isinstance(value, str):
            if value.isascii() or not _HALF_CHARACTER.search(value):
                return value
            self.halves += 1
            return _HALF_CHARACTER.sub("\ufffd", value)
        if isinstance(value, list):
            return [self._whole(item) for item in value]
        if isinstance(value, dict):
            return self._object([(self._whole(key), self._whole(of)) for key, of in value.items()])
        return value

    def _fail(self, line: int, reason: str) -> NoReturn:
        raise InputError(
            f"input file {self._path!r}, line {line}: {reason}; expected JSON lines, one object "
            "per line, or one array of objects: repair it or leave it out"
        )


def _fraction(literal: str) -> float | Beyond:
    number = float(literal)
    return Beyond(literal) if isinf(number) else number


def _no_object(value: Any) -> str:
    return f"it is {type(value).__name__} {str(value)[:20]!r}, no JSON object"


def _after_space(text: str, place: int) -> int:
    found = _WHITESPACE.match(text, place)
    return found.end() if found else place
