"""Columns as Spark's DDL writes them: `a float, b array<struct<word: string, score: double>>`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.files.types import MOST_DIGITS

_OF_RESULTS = {
    "string": pa.string(),
    "int": pa.int32(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
}
"""What a pipeline's results may be."""

_PLAIN = {
    **_OF_RESULTS,
    "tinyint": pa.int8(),
    "smallint": pa.int16(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "timestamp_ntz": pa.timestamp("us"),
}
_NAMES = {kind: name for name, kind in reversed(_PLAIN.items())}
_FORMS = {
    "array": "array<TYPE>",
    "struct": "struct<NAME: TYPE, ...>",
    "map": "map<TYPE, TYPE>",
    "decimal": "decimal(DIGITS, SCALE)",
}
_TOKEN = re.compile(r"\s*(`(?:[^`]|``)+`|\w+|[<>,:()])")
_BARE = re.compile(r"\w+")


def parse_columns(text: str, option: str, of_results: bool = False) -> pa.Schema:
    """Returns the columns that a DDL names.

    Args:
        text: the DDL.
        option: that holds it, for messages.
        of_results: whether only the types of a pipeline's results are known.

    Raises:
        ConfigError: it is no DDL, or uses a type or a name that cannot be.
    """
    parser = _Parser(text, option, of_results)
    fields = list(parser.fields(end=""))
    return pa.schema(parser.distinct(fields))


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
    if pa.types.is_map(kind):
        return f"map<{type_as_ddl(kind.key_type)}, {type_as_ddl(kind.item_type)}>"
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision}, {kind.scale})"
    return _NAMES[kind]


class _Parser:
    """Reads a DDL from left to right.

    Args:
        text: the DDL.
        option: that holds it.
        of_results: see `parse_columns`.
    """

    def __init__(self, text: str, option: str, of_results: bool) -> None:
        self._text = text
        self._option = option
        self._plain = _OF_RESULTS if of_results else _PLAIN
        self._nested = ("array", "struct") if of_results else ("array", "struct", "map", "decimal")
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
        token = self._take()
        name = token.lower()
        if name in self._plain:
            return self._plain[name]
        if name not in self._nested:
            raise self._wrong(token)
        if name == "decimal":
            return self._decimal()
        self._expect("<")
        if name == "struct":
            return pa.struct(self.distinct(list(self.fields(end=">"))))
        first = self._type()
        if name == "map":
            self._expect(",")
            first = pa.map_(first, self._type())
        self._expect(">")
        return first if name == "map" else pa.list_(first)

    def _decimal(self) -> pa.DataType:
        self._expect("(")
        precision = self._number(1, MOST_DIGITS)
        self._expect(",")
        scale = self._number(0, precision)
        self._expect(")")
        return pa.decimal128(precision, scale)

    def _number(self, least: int, most: int) -> int:
        token = self._take()
        if not token.isdecimal() or not least <= int(token) <= most:
            raise self._wrong(token)
        return int(token)

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
        *names, last = [*self._plain, *(_FORMS[name] for name in self._nested)]
        return ConfigError(
            f"{self._option}={self._text!r} {where}: expected columns as in 'label string, score "
            f"double': a name and {', '.join(names)} or {last}"
        )

    def distinct(self, fields: list[pa.Field]) -> list[pa.Field]:
        """Returns fields; raises ConfigError for two that Spark does not tell apart."""
        names = [field.name.lower() for field in fields]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"{self._option}={self._text!r}: two fields are named {name!r}; rename one"
                )
        return fields


def _quoted(name: str) -> str:
    return name if _BARE.fullmatch(name) else "`" + name.replace("`", "``") + "`"
