"""Cuts rows into row groups before they are scored, and distributes row groups over ranks.

Pure functions over plain integers: what any rank of any world reads is known without a cluster.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparkinfer.batching.planner import IntArray


def growing_limits(first: int, largest: int) -> Iterator[int]:
    """Yields token limits that double from the first to the largest, then the largest forever.

    A short table gets small row groups, which ranks can share evenly; a long one gets few small
    ones.
    """
    limit = min(first, largest)
    while True:
        yield limit
        limit = min(limit * 2, largest)


def cut_row_groups(
    lengths: npt.ArrayLike,
    limits: Iterator[int],
    max_rows: int,
    inputs: npt.NDArray[Any] | None = None,
) -> list[IntArray]:
    """Returns the rows of each row group: rows of similar length together, the longest first.

    Args:
        lengths: tokens of each row, int (rows,).
        limits: maximum tokens of each next row group, consumed one at a time; a longer row gets a
            row group of its own.
        max_rows: maximum rows of a row group, at least 1.
        inputs: tells the inputs of rows apart; rows of one that follow one another, which have
            one length, then share a row group, whatever the limits. None: they need not.

    Returns:
        Index arrays, int64; every row is in exactly one of them.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    ends = np.cumsum(sizes[order])
    groups = []
    start = 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + next(limits), side="right"))
        stop = max(start + 1, min(stop, start + max_rows))
        while (
            inputs is not None
            and stop < len(order)
            and (inputs[order[stop]] == inputs[order[stop - 1]])
        ):
            stop += 1
        groups.append(order[start:stop])
        start = stop
    return groups


def deal_out(tokens: Sequence[int], loads: Sequence[int]) -> list[list[int]]:
    """Returns for each rank the row groups that it scores, balanced by tokens.

    Each row group goes to exactly one rank, whatever the number of ranks; with more ranks than row
    groups some get none. The largest are assigned first, each to the rank with the fewest tokens.

    Args:
        tokens: tokens of each row group.
        loads: tokens that each rank has before it already.

    Returns:
        Indices into `tokens`, ascending, one list per rank.
    """
    shares: list[list[int]] = [[] for _ in loads]
    heap = [(load, 0, rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    for group in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        load, held, rank = heapq.heappop(heap)
        shares[rank].append(group)
        heapq.heappush(heap, (load + weight(tokens[group]), held + 1, rank))
    return [sorted(share) for share in shares]


def weight(tokens: int) -> int:
    """Returns what a row group of so many tokens counts: one without any still has rows."""
    return max(tokens, 1)
