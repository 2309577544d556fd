"""How many rows were done when, in so few points that they can be kept of a run of any length."""

from __future__ import annotations

MOST_POINTS = 256

FIRST_INTERVAL_S = 0.25
"""Time between two points at first; it doubles, at least, whenever there are too many of them."""


class Timeline:
    """Takes rows as they get done; keeps a point for each interval."""

    def __init__(self) -> None:
        self._points: list[tuple[float, int]] = []
        self._interval_s = FIRST_INTERVAL_S

    def add(self, at_s: float, rows: int) -> None:
        """Takes the rows done by some time; passed over so soon after the last point."""
        if self._points and at_s - self._points[-1][0] < self._interval_s:
            return
        self._points.append((at_s, rows))
        if len(self._points) == MOST_POINTS:
            self._points = kept = self._points[::2]
            self._interval_s = (kept[-1][0] - kept[0][0]) / (len(kept) - 1)

    def until(self, at_s: float, rows: int) -> tuple[tuple[float, int], ...]:
        """Returns the points, fewer than `MOST_POINTS`, and a last one."""
        return (*self._points, (at_s, rows))
