"""Keeps messages short: what they show of a value, and how long they may be altogether."""

from __future__ import annotations

import reprlib
from typing import Any

MOST_CHARACTERS = 1_900
"""Of a message; with what a program puts before it, it stays below 2,000."""

_MOST_OF_TEXT = 200
_MOST_BITS = 1_000


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """Returns a text of at most so many characters: its middle is left out, its length given.

    The end stays, since it says what to do.
    """
    if len(text) <= most:
        return text
    note = f" [... of {len(text):,} characters ...] "
    before = (most - len(note)) * 2 // 3
    return text[:before] + note + text[len(text) - (most - len(note) - before) :]


def first_line(error: BaseException) -> str:
    """Returns what an error says, in short, as text that can be written."""
    line = str(error).strip().split("\n", 1)[0][:300]
    return line.encode(errors="replace").decode() or "no message"


def shown(value: Any) -> str:
    """Returns a value as messages show it: its `repr`, of a large value only the start."""
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    """Does not visit more of a value than it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother = 4, _MOST_OF_TEXT
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 10

    def repr_str(self, value: str, level: int) -> str:
        """Returns a text's start, and its length if that is not all."""
        if len(value) <= _MOST_OF_TEXT:
            return repr(value)
        return f"{value[:_MOST_OF_TEXT]!r}... ({len(value):,} characters)"

    def repr_int(self, value: int, level: int) -> str:
        """Returns a number, or its size if Python would not write it."""
        if value.bit_length() <= _MOST_BITS:
            return repr(value)
        return f"an integer of {value.bit_length():,} bits"


_SHORT = _Short()
