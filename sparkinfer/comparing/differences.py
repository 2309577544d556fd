"""How far numbers lie apart, over all rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EDGES = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Upper ends of the bins of differences, each included; a last one holds what is larger."""


@dataclass(frozen=True)
class Differences:
    """How far numbers lie apart.

    Attributes:
        rows: that were compared.
        mean: of their differences.
        p99: the least difference that 99 % of the rows do not exceed.
        largest: of all.
        histogram: rows by difference, in the bins of `EDGES`; the first are those without any.
    """

    rows: int
    mean: float
    p99: float
    largest: float
    histogram: tuple[int, ...]

    @property
    def equal(self) -> int:
        """Rows without a difference."""
        return self.histogram[0]


class DifferenceSums:
    """Adds differences up. It keeps 4 bytes of each, since a quantile needs them all."""

    def __init__(self) -> None:
        self._kept: list[npt.NDArray[np.float32]] = []
        self._sum = self._largest = 0.0
        self._counts = np.zeros(len(EDGES) + 1, np.int64)

    def add(self, differences: npt.NDArray[np.float64]) -> None:
        """Adds the differences of some rows, none of them negative or NaN."""
        self._kept.append(differences.astype(np.float32))
        self._sum += float(differences.sum())
        self._largest = max(self._largest, float(differences.max(initial=0.0)))
        bins = np.searchsorted(EDGES, differences)
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def result(self) -> Differences | None:
        """Returns what they come to, None without any."""
        kept = np.concatenate(self._kept) if self._kept else np.zeros(0, np.float32)
        if not len(kept):
            return None
        p99 = min(float(np.quantile(kept, 0.99, method="inverted_cdf")), self._largest)
        counts = tuple(self._counts.tolist())
        return Differences(len(kept), self._sum / len(kept), p99, self._largest, counts)
