"""Two outputs over the same rows: which rows belong together, and how their results differ."""

SHOWN_ROWS = 10
"""Rows of each kind that are shown."""
