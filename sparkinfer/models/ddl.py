"""Columns as Spark's DDL writes them: `a float, b array<struct<word: string, score: double>>`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa

from sparkinfer.exceptions import ConfigError

_PLAIN = {
    "string": pa.string(),
    "int": pa.int32(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
}
_NAMES = {kind: name for name, kind in reversed(_PLAIN.items())}
_TOKEN = re.compile(r"\s*(`(?:[^`]|``)+`|\w+|[<>,:])")
_BARE = re.compile(r"\w+")
EXPECTED = (
    "columns as in 'label string, score double': a name and string, int, bigint, float, double, "
    "boolean, array<TYPE> or struct<NAME: TYPE, ...>"
)


def parse_columns(text: str) -> pa.Schema:
    """Returns the columns that a DDL names.

    Raises:
        ConfigError: it is no DDL, or uses a type or a name that cannot be.
    """
    parser = _Parser(text)
    fields = list(parser.fields(end=""))
    return pa.schema(_distinct(text, fields))


def columns_as_ddl(schema: pa.Schema) -> str:
    """Returns the DDL of columns; `parse_columns` reads it."""
    return ", ".join(f"{_quoted(field.name)} {type_as_ddl(field.type)}" for field in schema)


def type_as_ddl(kind: pa.DataType) -> str:
    """Returns the DDL of a type."""
    if pa.types.is_list(kind):
        return f"array<{type_as_ddl(kind.value_type)}>"
    if pa.types.is_struct(kind):
        parts = (f"{_quoted(one.name)}: {type_as_ddl(one.type)}" for one in kind)
        return f"struct<{', '.join(parts)}>"
    return _NAMES[kind]


class _Parser:
    """Reads a DDL from left to right.

    Args:
        text: the DDL.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._rest = list(self._tokens())

    def fields(self, end: str) -> Iterator[pa.Field]:
        """Yields fields up to the end of the text, or of a struct."""
        while True:
            name = self._name()
            if self._next_is(":"):
                self._take()
            yield pa.field(name, self._type())
            token = self._take()
            if token == end:
                return
            if token != ",":
                raise self._wrong(token)

    def _type(self) -> pa.DataType:
        name = self._take()
        if name.lower() in _PLAIN:
            return _PLAIN[name.lower()]
        if name.lower() not in ("array", "struct"):
            raise self._wrong(name)
        self._expect("<")
        if name.lower() == "struct":
            return pa.struct(_distinct(self._text, list(self.fields(end=">"))))
        inner = self._type()
        self._expect(">")
        return pa.list_(inner)

    def _name(self) -> str:
        token = self._take()
        if token.startswith("`"):
            return token[1:-1].replace("``", "`")
        if _BARE.fullmatch(token) is None:
            raise self._wrong(token)
        return token

    def _tokens(self) -> Iterator[str]:
        place, text = 0, self._text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise self._wrong(text[place:].strip()[:20])
            yield match[1]
            place = match.end()

    def _next_is(self, token: str) -> bool:
        return bool(self._rest) and self._rest[0] == token

    def _take(self) -> str:
        return self._rest.pop(0) if self._rest else ""

    def _expect(self, wanted: str) -> None:
        token = self._take()
        if token != wanted:
            raise self._wrong(token)

    def _wrong(self, token: str) -> ConfigError:
        where = f"at {token!r}" if token else "at its end"
        return ConfigError(f"task.schema={self._text!r} {where}: expected {EXPECTED}")


def _distinct(text: str, fields: list[pa.Field]) -> list[pa.Field]:
    """Returns fields; raises ConfigError for two that Spark does not tell apart."""
    names = [field.name.lower() for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"task.schema={text!r}: two fields are named {name!r}; rename one")
    return fields


def _quoted(name: str) -> str:
    return name if _BARE.fullmatch(name) else "`" + name.replace("`", "``") + "`"
