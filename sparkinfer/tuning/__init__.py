"""Measures, on a sample of the input, which settings score it fastest."""

BUDGET_S = 120.0
"""Seconds after which nothing more is begun, if nothing else is said."""
