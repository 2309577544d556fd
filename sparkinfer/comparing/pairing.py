"""Which rows belong together, by numbers that are equal where their values are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparkinfer.comparing.values import Integers


class Pairs(NamedTuple):
    """Rows that belong together.

    Attributes:
        a: positions in the one, int64 (pairs,), growing.
        b: of the row that belongs to each in the other.
    """

    a: Integers
    b: Integers


def pair(a: Integers, b: Integers) -> Pairs:
    """Returns the rows with equal numbers: the first of such rows with the first, and so on.

    Each row is in at most one pair; of equal rows as many are paired as both have.

    Args:
        a: of each row of the one, from 0.
        b: of each row of the other.
    """
    times_a, times_b = _times_before(a), _times_before(b)
    most = 1 + max(times_a.max(initial=0), times_b.max(initial=0))
    _, in_a, in_b = np.intersect1d(
        a * most + times_a, b * most + times_b, assume_unique=True, return_indices=True
    )
    order = np.argsort(in_a)
    return Pairs(in_a[order], in_b[order])


def pair_alike_first(a: Integers, b: Integers, full_a: Integers, full_b: Integers) -> Pairs:
    """Does the same, but has rows of equal numbers that are equal throughout meet first.

    Args:
        a: see `pair`.
        b: see `pair`.
        full_a: of each row of the one, equal where all of the row is; at least as fine as `a`.
        full_b: of each row of the other.
    """
    first = pair(full_a, full_b)
    left_a, left_b = unpaired(first.a, len(a)), unpaired(first.b, len(b))
    then = pair(a[left_a], b[left_b])
    joined = Pairs(
        np.concatenate([first.a, left_a[then.a]]), np.concatenate([first.b, left_b[then.b]])
    )
    order = np.argsort(joined.a)
    return Pairs(joined.a[order], joined.b[order])


def unpaired(paired: Integers, rows: int) -> Integers:
    """Returns the positions among so many rows that are not paired."""
    is_left: npt.NDArray[np.bool_] = np.ones(rows, np.bool_)
    is_left[paired] = False
    return np.flatnonzero(is_left)


def repeated(a: Integers, b: Integers) -> npt.NDArray[np.bool_]:
    """Returns whether more than one row of either has a number, for each from 0 to the largest."""
    most = 1 + max(a.max(initial=0), b.max(initial=0))
    times: Integers = np.maximum(np.bincount(a, minlength=most), np.bincount(b, minlength=most))
    return times > 1


def _times_before(numbers: Integers) -> Integers:
    """Returns how many rows before each have its number, int64 (rows,)."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    starts = np.flatnonzero(is_first)
    lengths = np.diff(np.append(starts, len(ordered)))
    times = np.empty(len(ordered), np.int64)
    times[order] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return times
