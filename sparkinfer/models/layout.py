"""How sequences are laid out in batches, so that no text's score depends on its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparkinfer.models.tokens import PaddingSide

Shared = Literal["any length", "equal length", "nothing"]
"""Which sequences may share a batch."""


@dataclass(frozen=True)
class Layout:
    """What the gate found out about batches of a model, and every worker follows.

    Attributes:
        shared: which sequences may share a batch.
        padding_side: where shorter sequences of a batch are filled.
        pad_id: token with which they are filled.
        resets: modules whose state a batch changes; it is put back before each batch.
        pad_to_multiple_of: of what the length of a batch of several texts is a multiple, as far as
            the model's limit allows.
    """

    shared: Shared = "any length"
    padding_side: PaddingSide = "right"
    pad_id: int = 0
    resets: tuple[str, ...] = ()
    pad_to_multiple_of: int = 1
