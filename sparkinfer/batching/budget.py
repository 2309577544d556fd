"""The tokens of a batch, which shrink where a device runs out of memory and grow again."""

from __future__ import annotations

PATIENCE = 32
"""Batches that fit before more is tried again, after the first time that memory ran out."""


class TokenBudget:
    """Most tokens of a batch, padding included.

    What fits may change: another process on the device takes memory and gives it back, and one long
    text says little of the batches after it. So the budget doubles after some batches that fit, up
    to what was asked for, and each time that memory runs out it takes twice as many of them.

    Args:
        tokens: what was asked for.

    Attributes:
        tokens: at the moment.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._asked = tokens
        self._patience = PATIENCE
        self._fitted = 0
        self._has_shrunk = False

    def shrink(self, padded: int) -> None:
        """Halves it, since a batch did not fit.

        Args:
            padded: tokens of that batch, padding included.
        """
        if self._has_shrunk:
            self._patience *= 2
        self._has_shrunk = True
        self.tokens = max(1, min(self.tokens, padded) // 2)
        self._fitted = 0

    def fitted(self) -> None:
        """Takes note of a batch that fit."""
        if self.tokens >= self._asked:
            return
        self._fitted += 1
        if self._fitted >= self._patience:
            self.tokens = min(2 * self.tokens, self._asked)
            self._fitted = 0
