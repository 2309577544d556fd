"""What is known of a job's rows before the first is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class RowsAhead:
    """The rows of a job, as far as they are known; picklable.

    Attributes:
        longest_text: an upper bound of the UTF-8 bytes of the longest text, None if unknown.
        text_bytes: about the bytes of all texts together, None if unknown.
        first: yields rows from the input's start, None if there are none to look at cheaply.
        replicas: of the model that will share them.
    """

    longest_text: int | None = None
    text_bytes: int | None = None
    first: Callable[[], Iterable[pa.RecordBatch]] | None = None
    replicas: int = 1


NOTHING_KNOWN = RowsAhead()
"""Of a job whose rows nobody has looked at."""
