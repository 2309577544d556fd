"""Batches of rows of similar length under a token budget, and deduplication of rows.

A batch is padded to its longest row, so the cost of a forward pass is rows x longest. Sorting a
wide window by length before it is cut into batches keeps the padding small.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


MAX_PADDING_SHARE = 0.05
"""A batch is closed before a row that would push its padding beyond this share ..."""

PADDING_ALLOWANCE_TOKENS = 32
"""... plus this many tokens: about what starting another small batch costs."""


def plan_batches(
    lengths: npt.ArrayLike,
    *,
    max_tokens: int,
    max_rows: int,
    mixes_lengths: bool = True,
    pads_freely: bool = False,
) -> list[IntArray]:
    """Returns the rows of each batch, the longest rows first.

    The longest batch comes first so that a batch too large for the device shows immediately. Rows
    much shorter than the longest of their batch start a new one.

    Args:
        lengths: tokens of each row, int (rows,).
        max_tokens: maximum tokens of a batch, padding included, at least 1. A longer row gets a
            batch of its own.
        max_rows: maximum rows of a batch, at least 1.
        mixes_lengths: whether rows of unlike length may share a batch.
        pads_freely: whether they do so however much padding it takes.

    Returns:
        Index arrays, int64; every row is in exactly one of them.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(sizes[order[start]]), 1)
        rows = order[start : start + max(1, min(max_rows, max_tokens // longest))]
        alike = _rows_of_like_length if mixes_lengths else _rows_of_equal_length
        rows = rows if pads_freely else rows[: alike(sizes[rows])]
        batches.append(rows)
        start += len(rows)
    return batches


def _rows_of_like_length(sizes: IntArray) -> int:
    """Returns how many of the rows, longest first, may share a batch without much padding."""
    longest = max(int(sizes[0]), 1)
    padding = np.cumsum(longest - sizes)
    padded = longest * np.arange(1, len(sizes) + 1)
    too_much = padding > MAX_PADDING_SHARE * padded + PADDING_ALLOWANCE_TOKENS
    return int(too_much.argmax()) if too_much.any() else len(sizes)


def _rows_of_equal_length(sizes: IntArray) -> int:
    """Returns how many of the rows, longest first, are as long as the first."""
    return int((sizes == sizes[0]).sum())


def padded_tokens(lengths: npt.ArrayLike, batches: Sequence[IntArray]) -> int:
    """Returns the number of tokens in the batches, padding included."""
    sizes = np.asarray(lengths, dtype=np.int64)
    return sum(int(sizes[rows].max()) * len(rows) for rows in batches)


def deduplicate(keys: Sequence[Hashable]) -> tuple[list[Any], IntArray]:
    """Returns the distinct keys in order of first occurrence, and each key's position among them.

    Returns:
        The distinct keys, and an int64 array (len(keys),) such that
        `distinct[place[i]] == keys[i]`.
    """
    seen: dict[Hashable, int] = {}
    indices = np.fromiter(
        (seen.setdefault(key, len(seen)) for key in keys), dtype=np.int64, count=len(keys)
    )
    return list(seen), indices
