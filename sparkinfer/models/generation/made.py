"""What was generated for the rows of a batch, and the texts at which it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STOP, LENGTH = "stop", "length"
"""Why a row ended: as the model or a given text has it, or at the most tokens."""


@dataclass
class Made:
    """What was generated.

    Attributes:
        tokens: of each row, its end included.
        reasons: why each row ended; None: its logits were not finite.
    """

    tokens: list[list[int]]
    reasons: list[str | None]


class StopTexts:
    """Texts that end a row.

    Args:
        tokenizer: of the model.
        texts: none of them empty; may be none.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._texts = tuple(texts)
        # A token is at least a byte of the text, but for special ones.
        self._tail = max((len(text.encode()) for text in texts), default=0) + 8

    def end(self, tokens: Sequence[int]) -> bool:
        """Returns whether one of them is in what was generated, of which the end is new."""
        if not self._texts:
            return False
        near = self._decoded(tokens[-self._tail :])
        return self._first(near) is not None and self._first(self._decoded(tokens)) is not None

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones, up to the first of the stop texts."""
        text = self._decoded(tokens)
        return text[: self._first(text)]

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _first(self, text: str) -> int | None:
        """Returns where the first of the stop texts begins, None if there is none."""
        places = (text.find(one) for one in self._texts)
        return min((place for place in places if place >= 0), default=None)
