"""The options of a batcher, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sparkinfer.validation import Options, at_least, read_by


def _function(value: Any) -> Any:
    if value is None or callable(value):
        return value
    raise ValueError("a function that returns the length of an item")


@dataclass(frozen=True, init=False)
class BatchOptions(Options):
    """When a batch leaves, what is in it, and what happens if it fails."""

    batch_size: int = field(default=32, metadata=at_least(1))
    """Maximum items of a batch; once that many wait, they leave."""
    timeout_ms: float = field(default=5.0, metadata=at_least(0))
    """Fewer leave when the oldest has waited so long, or nothing new came for a tenth of it."""
    small_batch_threshold: int = field(default=8, metadata=at_least(0))
    """Calls with up to this many items come before larger ones."""
    max_batch_length: int | None = field(default=None, metadata=at_least(1))
    """Maximum sum of the items' lengths in a batch; a longer item is alone."""
    max_batch_tokens: int | None = field(default=None, metadata=at_least(1))
    """Maximum items times the longest, as they are when padded; items of like length share a batch.
    A longer item is alone."""
    length: object = field(default=None, metadata=read_by(_function))
    """Returns the length of an item; None: its `len`, of a mapping the longest of its values."""
    max_queue: int | None = field(default=None, metadata=at_least(1))
    """Maximum items that wait; None: no limit. A larger call is taken when none waits."""
    when_full: Literal["wait", "refuse"] = "wait"
    """Whether a call waits for room in the queue, in order of arrival, or gets QueueFullError."""
    on_error: Literal["raise", "bisect"] = "raise"
    """Whether all calls of a batch get its error, or it is halved until those that fail are by
    themselves."""
    workers: int = field(default=1, metadata=at_least(1))
    """How many batches are under way at a time."""


@dataclass(frozen=True, init=False)
class PaddingOptions(Options):
    """How dicts of arrays become batches."""

    pad_tokens: dict[str, object] = field(default_factory=dict)
    """What each feature is padded with; 0 where it is not named."""
    padding_side: Literal["right", "left"] = "right"
    """Whether the padding comes after the values or before them."""
    spread_kwargs: bool = False
    """Whether the function takes the features as keyword arguments."""


@dataclass(frozen=True, init=False)
class ModelOptions(BatchOptions, PaddingOptions):
    """The options of a batcher of dicts of arrays."""
