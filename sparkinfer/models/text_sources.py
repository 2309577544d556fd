"""Where a model's texts come from: a column, or several in a template, changed by a function.

Whatever keeps a row from having a text is that row's alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

import pyarrow as pa

from sparkinfer.exceptions import ConfigError
from sparkinfer.files.columns import TEXT, check_type, refuse_unknown
from sparkinfer.models.preprocess import Failed, Preprocess

_IN_TEMPLATE = re.compile(TEXT.pattern + r"|u?int\d+|bool")
_MESSAGES = re.compile(r"list<struct<(role: string, content|content: string, role): string>>")


class Messages(str):
    """A list of messages as JSON, distinguished from a text that only looks like one."""

    __slots__ = ()


@dataclass
class Texts:
    """The texts of some rows.

    Attributes:
        values: one for each row; None if it has none.
        reasons: why a row has none, by its position, where that is not a null.
    """

    values: list[str | None]
    reasons: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnText:
    """The text of a column.

    Attributes:
        option: that names it, for messages.
        column: its name.
        takes_messages: whether it may hold a list of messages, each a struct of `role` and
            `content`, in place of a text; such a list is passed on as `Messages`.
    """

    option: str
    column: str
    takes_messages: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are read."""
        return (self.column,)

    def check_types(self, inputs: pa.Schema) -> None:
        """Raises InputError for a column that is no text."""
        allowed, expected = TEXT, "string"
        if self.takes_messages:
            allowed = re.compile(f"{TEXT.pattern}|{_MESSAGES.pattern}")
            expected = "string or a list of messages, each a struct of role and content"
        check_type(self.option, inputs.field(self.column), allowed, expected)

    def longest(self, of_column: Callable[[str], int | None]) -> int | None:
        """Returns an upper bound of the UTF-8 bytes of a text; see `PlannedProcessor`."""
        return of_column(self.column)

    def read(self, rows: pa.RecordBatch) -> Texts:
        """Returns the text of each row."""
        column = rows.column(self.column)
        if pa.types.is_nested(column.type):
            return _read_messages(column)
        return read_texts(column)


@dataclass(frozen=True)
class TemplateText:
    """A text that is made of several columns.

    Attributes:
        template: with the names of columns in braces.
        null: what replaces a null; None: the row has no text.
    """

    template: str
    null: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are read.

        Raises:
            ConfigError: the template names none, or something other than columns.
        """
        return tuple(dict.fromkeys(name for _, name in self._parts() if name is not None))

    def check_types(self, inputs: pa.Schema) -> None:
        """Raises InputError for a column with values that are not always written alike."""
        for name in self.columns:
            expected = "string, an integer or a boolean"
            check_type("input_template", inputs.field(name), _IN_TEMPLATE, expected)

    def longest(self, of_column: Callable[[str], int | None]) -> int | None:
        """Returns an upper bound of the UTF-8 bytes of a text; see `PlannedProcessor`."""
        total = 0
        for literal, name in self._parts():
            length = 0 if name is None else of_column(name)
            if length is None:
                return None
            total += len(literal.encode()) + max(length, len((self.null or "").encode()))
        return total

    def read(self, rows: pa.RecordBatch) -> Texts:
        """Returns the text of each row."""
        reasons: dict[int, str] = {}
        values: dict[str, list[str | None]] = {}
        for name in self.columns:
            texts = read_texts(rows.column(name).cast(pa.string()))
            values[name] = texts.values
            why = {row: f"column {name!r}: {reason}" for row, reason in texts.reasons.items()}
            if self.null is None:
                nulls = [row for row, text in enumerate(texts.values) if text is None]
                why = {**dict.fromkeys(nulls, f"column {name!r} is null"), **why}
            reasons = {**why, **reasons}
        parts = self._parts()
        return Texts(
            [
                None if row in reasons else self._text(parts, values, row)
                for row in range(rows.num_rows)
            ],
            reasons,
        )

    def _text(
        self,
        parts: Sequence[tuple[str, str | None]],
        values: Mapping[str, list[str | None]],
        row: int,
    ) -> str:
        text = []
        for literal, name in parts:
            text.append(literal)
            if name is not None:
                value = values[name][row]
                text.append((self.null or "") if value is None else value)
        return "".join(text)

    def _parts(self) -> list[tuple[str, str | None]]:
        """Returns the pieces of the template, each with the column that follows it."""
        shown = f"input_template={self.template!r}"
        try:
            found = list(Formatter().parse(self.template))
        except ValueError as error:
            raise ConfigError(
                f"{shown}: {error}; write the names of columns in braces, and braces that are text "
                "twice"
            ) from None
        parts: list[tuple[str, str | None]] = []
        for literal, name, spec, conversion in found:
            if name == "" or spec or conversion:
                raise ConfigError(
                    f"{shown}: expected only names of columns in braces, as {{title}}"
                )
            parts.append((literal, name))
        if all(name is None for _, name in parts):
            raise ConfigError(
                f"{shown}: it names no column; write its name in braces, as {{title}}"
            )
        return parts


@dataclass(frozen=True)
class TextSource:
    """Where one of a task's texts comes from.

    Attributes:
        option: that names it, for messages.
        made_of: the columns.
        preprocess: changes the text; None: it stays as it is.
    """

    option: str
    made_of: ColumnText | TemplateText
    preprocess: Preprocess | None = None

    def check(self) -> None:
        """Raises ConfigError for a template or function that cannot be used."""
        _ = self.made_of.columns
        if self.preprocess is not None:
            self.preprocess.load()

    def check_names(self, columns: Sequence[str]) -> None:
        """Raises InputError for columns that the input does not have."""
        for name in self.made_of.columns:
            refuse_unknown(self.option, name, columns)

    def longest(self, of_column: Callable[[str], int | None]) -> int | None:
        """Returns an upper bound of the UTF-8 bytes of a text, None if unknown."""
        return None if self.preprocess is not None else self.made_of.longest(of_column)

    def read(self, rows: pa.RecordBatch) -> Texts:
        """Returns the text of each row."""
        texts = self.made_of.read(rows)
        if self.preprocess is None:
            return texts
        there = [(row, text) for row, text in enumerate(texts.values) if text is not None]
        changed = self.preprocess.change([str(text) for _, text in there])
        for (row, was), one in zip(there, changed, strict=True):
            if isinstance(one, Failed):
                texts.values[row], texts.reasons[row] = None, one.reason
            else:
                texts.values[row] = Messages(one) if isinstance(was, Messages) else one
        return texts


def read_texts(column: pa.Array) -> Texts:
    """Returns the texts of a string column; what is not valid UTF-8 costs its own row alone.

    Parquet files and Spark let any bytes pass as text; Arrow finds out when it makes strings.
    """
    try:
        return Texts(column.to_pylist())
    except UnicodeDecodeError:
        return _one_by_one(column.cast(pa.string()).view(pa.binary()))


def _read_messages(column: pa.ListArray) -> Texts:
    """Returns lists of messages; one with a text that is not valid UTF-8 costs its row alone."""
    found = Texts([])
    for row, one in enumerate(column):
        messages = None
        try:
            messages = one.as_py()
        except UnicodeDecodeError:
            found.reasons[row] = "a message is not valid UTF-8"
        found.values.append(None if messages is None else Messages(json.dumps(messages)))
    return found


def _one_by_one(column: pa.BinaryArray) -> Texts:
    found = Texts([])
    for row, content in enumerate(column.to_pylist()):
        text: Any = None
        try:
            text = None if content is None else content.decode("utf-8")
        except UnicodeDecodeError as error:
            found.reasons[row] = (
                f"text is not valid UTF-8 (byte 0x{content[error.start]:02x} at {error.start})"
            )
        found.values.append(text)
    return found
