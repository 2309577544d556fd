"""The rows that differ most, of those that have come so far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparkinfer.comparing.values import Integers


class LargestRows:
    """Keeps a few pairs of rows: those that changed before the others, then by difference.

    Where these are the same, the first rows of the one output are kept, so that the result does
    not depend on the order in which rows come.

    Args:
        most: pairs to keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept = np.zeros((4, 0), np.float64)

    def add(
        self,
        changed: npt.NDArray[np.bool_],
        differences: npt.NDArray[np.float64],
        a: Integers,
        b: Integers,
    ) -> None:
        """Adds pairs, all arrays (pairs,).

        Args:
            changed: whether the result is another.
            differences: how far the results are apart; none is NaN.
            a: places of the rows in the one output.
            b: places in the other.
        """
        is_unlike = changed | (differences > 0)
        new = np.stack([changed, differences, a, b]).astype(np.float64)[:, is_unlike]
        both = np.concatenate([self._kept, new], axis=1)
        order = np.lexsort((both[2], -both[1], -both[0]))[: self._most]
        self._kept = both[:, order]

    def result(self) -> list[tuple[bool, float, int, int]]:
        """Returns them, the first first: changed, difference, and the two places."""
        return [
            (bool(changed), difference, int(a), int(b))
            for changed, difference, a, b in self._kept.T.tolist()
        ]
