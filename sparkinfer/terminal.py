"""Shows text of others on a terminal without letting it act there.

Texts, labels and names of columns and files come from anywhere. A control character among them
could move the cursor, hide or forge what is shown, or change the direction of a line.
"""

from __future__ import annotations

import re

_ACTING = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # controls, line breaks and escape sequences
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction
    "\u00ad\u115f\u1160\u180e\u200b\u200c\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0"  # no width
    "\u2028\u2029\ufff9-\ufffb"  # separators, annotations
    "\ud800-\udfff"  # halves of characters
    "\U000e0000-\U000e007f"  # tags
    "]"
    # A joiner belongs between two pictures that become one; elsewhere it is of no width.
    "|(?<![\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d"
    "|\u200d(?![\u2190-\u2bff\U0001f000-\U0001faff])"
)


def printable(text: str) -> str:
    r"""Returns the text as one line, with each character that would act escaped, such as `\x1b`."""
    return _ACTING.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """Returns the text with its line breaks, each line printable."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")
