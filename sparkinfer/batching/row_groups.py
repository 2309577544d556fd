"""Rows cut into row groups before they are scored, and row groups dealt out to ranks.

Pure functions over plain integers: what any rank of any world reads can be told without a cluster.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sparkinfer.batching.planner import IntArray


def growing_limits(first: int, largest: int) -> Iterator[int]:
    """Yields token limits that double from the first to the largest, and then that one for ever.

    A short table gets small row groups, which ranks can share evenly; a long one few small ones.
    """
    limit = min(first, largest)
    while True:
        yield limit
        limit = min(limit * 2, largest)


def cut_row_groups(
    lengths: npt.ArrayLike, limits: Iterator[int], *, max_rows: int
) -> list[IntArray]:
    """Returns the rows of each row group: rows of like length together, the longest first.

    Args:
        lengths: tokens of each row, int (rows,).
        limits: most tokens of the next row group, taken one at a time; a row that is longer gets
            a row group of its own.
        max_rows: most rows in a row group, at least 1.

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
        groups.append(order[start:stop])
        start = stop
    return groups


def deal_out(tokens: Sequence[int], world_size: int) -> list[list[int]]:
    """Returns for each rank the row groups that it scores, so that ranks have like many tokens.

    Each row group goes to exactly one rank, whatever the number of ranks; with more ranks than row
    groups some get none. The largest are dealt out first, each to the rank with the fewest tokens.

    Args:
        tokens: tokens of each row group.
        world_size: number of ranks.

    Returns:
        Indices into `tokens`, ascending, one list per rank.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    # Row groups without tokens (all texts null) still are rows: they count as one token.
    loads = [(0, 0, rank) for rank in range(world_size)]
    for group in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        load, held, rank = heapq.heappop(loads)
        shares[rank].append(group)
        heapq.heappush(loads, (load + max(tokens[group], 1), held + 1, rank))
    return [sorted(share) for share in shares]
